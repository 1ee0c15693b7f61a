"""The server span, the log line, and the trace context that goes on to the scheduler."""

import asyncio

import pytest
import structlog
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from batchyard.errors import Overloaded, WorkerLost
from tests.gateway.api_fakes import FakeGenerator, in_process, make_app

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CHAT = {"model": "demo", "messages": [{"role": "user", "content": "my secret"}]}


class Traced:
    """An app and the spans it has ended."""

    def __init__(self, generator: FakeGenerator | None = None) -> None:
        self.generator = generator or FakeGenerator()
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.app = make_app(self.generator, tracer=provider.get_tracer("test"))

    async def post(self, path="/v1/chat/completions", body=CHAT, **headers):
        async with in_process(self.app) as client:
            return await client.post(path, json=body, headers=headers)

    @property
    def spans(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self._exporter.get_finished_spans()}


@pytest.mark.parametrize("stream", [False, True])
async def test_one_request(stream):
    traced = Traced()
    parent = f"00-{TRACE}-{PARENT}-01"
    await traced.post(body=CHAT | {"stream": stream, "n": 2}, traceparent=parent)
    assert set(traced.spans) == {"POST /v1/chat/completions", "tokenize"}
    server = traced.spans["POST /v1/chat/completions"]
    assert format(server.context.trace_id, "032x") == TRACE
    assert format(server.parent.span_id, "016x") == PARENT
    assert dict(server.attributes) == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "demo",
        "gen_ai.usage.input_tokens": 16,
        "gen_ai.usage.output_tokens": 8,
        "gen_ai.response.finish_reasons": ("stop", "stop"),
    }
    tokenize = traced.spans["tokenize"]
    assert tokenize.parent.span_id == server.context.span_id
    assert server.start_time <= tokenize.start_time <= tokenize.end_time <= server.end_time
    passed_on = f"00-{TRACE}-{server.context.span_id:016x}-01"
    assert {request.traceparent for request in traced.generator.requests} == {passed_on}


async def test_a_trace_that_is_not_sampled_is_not_passed_on():
    traced = Traced()
    await traced.post(traceparent=f"00-{TRACE}-{PARENT}-00")
    assert traced.spans == {}
    assert traced.generator.requests[0].traceparent == ""


async def test_a_malformed_traceparent_starts_a_new_trace():
    traced = Traced()
    await traced.post(traceparent="00-nonsense")
    assert traced.spans["POST /v1/chat/completions"].parent is None


@pytest.mark.parametrize(
    ("error", "after", "kind", "status"),
    [
        (Overloaded("full"), 0, "overloaded", StatusCode.UNSET),
        (WorkerLost("gone"), 0, "internal", StatusCode.ERROR),
        (WorkerLost("gone"), 2, "internal", StatusCode.ERROR),
    ],
)
async def test_only_our_own_failures_are_errors(error, after, kind, status):
    traced = Traced(FakeGenerator(fails_with=error, fails_after=after))
    await traced.post(body=CHAT | {"stream": True})
    span = traced.spans["POST /v1/chat/completions"]
    assert span.attributes["error.type"] == kind
    assert span.status.status_code == status


async def test_names_have_few_values():
    traced = Traced()
    await traced.post("/v1/whatever")
    async with in_process(traced.app) as client:
        await client.get("/v1/models/whatever")
        await client.get("/health")
    assert set(traced.spans) == {"POST", "GET /v1/models/{model:path}"}


@pytest.mark.parametrize("stream", [False, True])
async def test_one_line_of_log(stream):
    with structlog.testing.capture_logs() as lines:
        await Traced().post(body=CHAT | {"stream": stream}, **{"X-Request-Id": "mine"})
    [line] = lines
    assert line.pop("ttft_ms") > 0
    assert line.pop("e2e_ms") > 0
    assert line == {
        "event": "request",
        "log_level": "info",
        "route": "/v1/chat/completions",
        "status": 200,
        "error": None,
        "tenant": None,
        "prompt_tokens": 16,
        "completion_tokens": 4,
        "cached_tokens": 16,
    }


async def test_never_the_prompt():
    with structlog.testing.capture_logs() as lines:
        await Traced().post(body=CHAT | {"temperature": 9})
        await Traced(FakeGenerator(fails_with=WorkerLost("gone"))).post()
    assert "secret" not in str(lines)


async def test_requests_at_once_do_not_mix():
    traced = Traced()
    await asyncio.gather(*(traced.post(**{"X-Request-Id": f"r{i}"}) for i in range(5)))
    assert {request.request_id for request in traced.generator.requests} == {f"r{i}" for i in range(5)}
    assert len({request.traceparent for request in traced.generator.requests}) == 5
