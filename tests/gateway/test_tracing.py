"""The spans of a request, which traces are kept, the log line, and the trace context that goes on."""

import asyncio
import json
from datetime import UTC, datetime

import pytest
import structlog

from batchyard.errors import Overloaded, WorkerLost
from batchyard.spans import SpanRecorder
from gateway.keys.records import record_for
from gateway.keys.ring import KeyRing
from gateway.keys.stores import FileKeys
from gateway.request_trace import Traces
from tests.gateway.api_fakes import FakeGenerator, in_process, make_app

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CHAT = {"model": "demo", "messages": [{"role": "user", "content": "my secret"}]}


class Traced:
    """An app, the spans it has exported, and the traces that it has had kept elsewhere."""

    def __init__(self, generator=None, sample=1.0, slow_s=float("inf"), content=False, **app):
        self.generator = generator or FakeGenerator()
        self.exported = []
        self.kept = []
        recorder = SpanRecorder(self.exported.append, sample)
        traces = Traces(recorder, slow_s, self.kept.extend, content=content)
        self.app = make_app(self.generator, traces=traces, **app)

    async def post(self, path="/v1/chat/completions", body=CHAT, **headers):
        async with in_process(self.app) as client:
            return await client.post(path, json=body, headers=headers)

    @property
    def spans(self):
        return {span.name: span for span in self.exported}


@pytest.mark.parametrize("stream", [False, True])
async def test_one_request(stream):
    traced = Traced()
    parent = f"00-{TRACE}-{PARENT}-01"
    asked = {"stream": stream, "n": 2, "temperature": 0.5, "top_p": 0.9, "max_tokens": 100, "seed": 7}
    await traced.post(body=CHAT | asked, traceparent=parent, **{"X-Request-Id": "mine"})
    assert set(traced.spans) == {"POST /v1/chat/completions", "tokenize", "generate"}
    server = traced.spans["POST /v1/chat/completions"]
    assert server.is_server
    assert f"{server.context.trace_id:032x}" == TRACE
    assert f"{server.parent_id:016x}" == PARENT
    attributes = dict(server.attributes)
    assert 0 < attributes.pop("gen_ai.server.time_to_first_token") < 10
    assert attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "batchyard.request_id": "mine",
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "batchyard",
        "gen_ai.request.model": "demo",
        "gen_ai.response.model": "demo",
        "gen_ai.request.choice.count": 2,
        "gen_ai.request.max_tokens": 100,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.top_k": 0,
        "gen_ai.request.frequency_penalty": 0.0,
        "gen_ai.request.presence_penalty": 0.0,
        "gen_ai.request.seed": 7,
        "gen_ai.usage.input_tokens": 16,
        "gen_ai.usage.cache_read.input_tokens": 16,
        "gen_ai.usage.output_tokens": 8,
        "gen_ai.response.finish_reasons": ["stop", "stop"],
    }
    children = [span for span in traced.exported if span is not server]
    assert all(span.parent_id == server.context.span_id for span in children)
    assert all(server.start_ns <= span.start_ns <= span.end_ns <= server.end_ns for span in children)
    assert all(span.context.trace_id == server.context.trace_id for span in children)


async def test_there_is_a_span_of_each_answer_whose_context_goes_on():
    traced = Traced()
    await traced.post(body=CHAT | {"n": 2})
    answers = [span for span in traced.exported if span.name == "generate"]
    assert [dict(span.attributes) for span in answers] == [
        {
            "batchyard.answer": index,
            "gen_ai.usage.output_tokens": 4,
            "gen_ai.response.finish_reasons": ["stop"],
        }
        for index in (0, 1)
    ]
    passed_on = [request.traceparent for request in traced.generator.requests]
    assert passed_on == [span.context.traceparent for span in answers]


async def test_without_traces_there_is_no_context():
    generator = FakeGenerator()
    async with in_process(make_app(generator)) as client:
        await client.post("/v1/chat/completions", json=CHAT)
    assert generator.requests[0].traceparent == ""


async def test_a_trace_that_is_not_sampled_says_so_where_it_goes_on():
    traced = Traced()
    await traced.post(traceparent=f"00-{TRACE}-{PARENT}-00")
    assert traced.exported == []
    assert traced.kept == []
    passed_on = traced.generator.requests[0].traceparent
    assert passed_on.startswith(f"00-{TRACE}-")
    assert passed_on.endswith("-00")


async def test_a_malformed_traceparent_starts_a_new_trace():
    traced = Traced()
    await traced.post(traceparent="00-nonsense")
    assert traced.spans["POST /v1/chat/completions"].parent_id == 0


class Slow(FakeGenerator):
    """Pauses before one of its pieces."""

    async def generate(self, request):
        index = 0
        async for piece in super().generate(request):
            if index == self.pauses_before:
                await asyncio.sleep(0.1)
            index += 1
            yield piece


class TestTailDecision:
    """What is kept of traces that are not sampled."""

    @pytest.mark.parametrize("pauses_before", [0, 3])
    async def test_slow_requests(self, pauses_before):
        generator = Slow()
        generator.pauses_before = pauses_before
        traced = Traced(generator, sample=0.0, slow_s=0.1)
        await traced.post(body=CHAT | {"stream": True})
        assert set(traced.spans) == {"POST /v1/chat/completions", "tokenize", "generate"}
        assert traced.kept == [traced.spans["tokenize"].context.trace_id]

    async def test_not_those_that_take_long_but_go_on(self):
        generator = Slow(words=["x"] * 4)
        generator.pauses_before = 1
        traced = Traced(generator, sample=0.0, slow_s=5)
        await traced.post()
        assert traced.exported == traced.kept == []

    async def test_failed_requests(self):
        traced = Traced(FakeGenerator(fails_with=WorkerLost("gone"), fails_after=1), sample=0.0)
        await traced.post()
        assert set(traced.spans) == {"POST /v1/chat/completions", "tokenize", "generate"}
        assert len(traced.kept) == 1

    async def test_not_refusals_for_which_the_client_is_to_blame(self):
        traced = Traced(FakeGenerator(fails_with=Overloaded("full")), sample=0.0)
        await traced.post()
        await traced.post(body=CHAT | {"temperature": 9})
        assert traced.exported == traced.kept == []

    async def test_a_client_that_gave_up_waiting(self):
        generator = FakeGenerator(hangs_after=2)
        traced = Traced(generator, sample=0.0, slow_s=0.05)
        posting = asyncio.create_task(traced.post(body=CHAT | {"stream": True}))
        await generator.hanging.wait()
        await asyncio.sleep(0.06)
        posting.cancel()
        await asyncio.wait([posting])
        assert len(traced.kept) == 1
        assert traced.spans["generate"].attributes["gen_ai.usage.output_tokens"] == 2


async def test_the_limiter_has_a_span_with_its_outcome(tmp_path):
    store = FileKeys(tmp_path / "keys.json")
    await store.add(record_for("key", datetime.now(UTC), "acme", requests_per_minute=1))
    keys = KeyRing(store)
    await keys.read()
    traced = Traced(keys=keys)
    for status in (200, 429):
        answer = await traced.post(Authorization="Bearer key")
        assert answer.status_code == status
    outcomes = [span.attributes for span in traced.exported if span.name == "limits"]
    assert outcomes == [
        {"batchyard.limits.outcome": "granted"},
        {"batchyard.limits.outcome": "requests"},
    ]
    # Who was refused there has not been answered.
    assert len([span for span in traced.exported if span.name == "generate"]) == 1


class TestContent:
    async def test_is_there_only_where_it_is_asked_for(self):
        traced = Traced()
        await traced.post()
        assert "secret" not in str(traced.exported)
        traced = Traced(content=True)
        await traced.post(body=CHAT | {"stream": True})
        attributes = traced.spans["POST /v1/chat/completions"].attributes
        assert json.loads(attributes["gen_ai.input.messages"]) == [
            {"role": "user", "parts": [{"type": "text", "content": "my secret"}]}
        ]
        assert json.loads(attributes["gen_ai.output.messages"]) == [
            {
                "role": "assistant",
                "parts": [{"type": "text", "content": "Hello wörld!"}],
                "finish_reason": "stop",
            }
        ]

    async def test_of_completions(self):
        traced = Traced(content=True)
        await traced.post("/v1/completions", {"model": "demo", "prompt": ["one", "two"]})
        attributes = traced.spans["POST /v1/completions"].attributes
        messages = json.loads(attributes["gen_ai.input.messages"])
        assert [message["parts"][0]["content"] for message in messages] == ["one", "two"]
        assert len(json.loads(attributes["gen_ai.output.messages"])) == 2


@pytest.mark.parametrize(
    ("error", "after", "kind", "failed"),
    [
        (Overloaded("full"), 0, "overloaded", False),
        (WorkerLost("gone"), 0, "internal", True),
        (WorkerLost("gone"), 2, "internal", True),
    ],
)
async def test_only_our_own_failures_are_errors(error, after, kind, failed):
    traced = Traced(FakeGenerator(fails_with=error, fails_after=after))
    await traced.post(body=CHAT | {"stream": True})
    span = traced.spans["POST /v1/chat/completions"]
    assert span.attributes["error.type"] == kind
    assert span.failed == failed


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
