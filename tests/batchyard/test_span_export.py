"""Spans on their way to a collector over a real socket, and what happens where there is none."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import structlog
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span as ExportedSpan
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from batchyard.span_export import SpanExport
from batchyard.spans import Event, Span, new_trace
from batchyard.telemetry import Telemetry
from bench.fleet import free_port


class Collector(TraceServiceServicer):
    """Keeps what is exported to it; does not answer while `stuck` is cleared."""

    def __init__(self):
        self.requests = []
        self.answers = threading.Event()
        self.answers.set()

    def Export(self, request, context):
        self.requests.append(request)
        self.answers.wait(20)
        return ExportTraceServiceResponse()

    @property
    def spans(self):
        scopes = [s for r in self.requests for resource in r.resource_spans for s in resource.scope_spans]
        return [span for scope in scopes for span in scope.spans]


def serve(collector, port=0):
    server = grpc.server(ThreadPoolExecutor(2))
    add_TraceServiceServicer_to_server(collector, server)
    return server, server.add_insecure_port(f"127.0.0.1:{port}")


@pytest.fixture
def collector():
    kept = Collector()
    server, port = serve(kept)
    server.start()
    yield kept, f"http://127.0.0.1:{port}"
    kept.answers.set()
    server.stop(0).wait()


def span(name="span", **fields):
    return Span(name, new_trace(sampled=True), 0, 1_000, 2_000, {}, **fields)


def wait_for(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_all_of_a_span_reaches_the_collector(collector):
    kept, endpoint = collector
    telemetry = Telemetry("batchyard-worker", "worker-0", endpoint)
    context, link = new_trace(sampled=False), new_trace(sampled=True)
    attributes = {"text": "a", "truth": True, "tokens": 3, "ms": 0.5, "list": ["x", "y"]}
    made = Span(
        "prefill", context, 7, 1_000, 2_000, attributes, [Event("chunk", 1_500, {"n": 1})], [link], True, True
    )
    telemetry.spans.add(made)
    telemetry.spans.keep(context.trace_id)
    telemetry.shutdown()
    (exported,) = kept.spans
    assert exported.name == "prefill"
    assert exported.trace_id == context.trace_id.to_bytes(16, "big")
    assert exported.span_id == context.span_id.to_bytes(8, "big")
    assert exported.parent_span_id == (7).to_bytes(8, "big")
    assert (exported.start_time_unix_nano, exported.end_time_unix_nano) == (1_000, 2_000)
    assert exported.kind == ExportedSpan.SPAN_KIND_SERVER
    assert exported.status.code == Status.STATUS_CODE_ERROR
    assert {each.key: each.value.WhichOneof("value") for each in exported.attributes} == {
        "text": "string_value",
        "truth": "bool_value",
        "tokens": "int_value",
        "ms": "double_value",
        "list": "array_value",
    }
    (event,) = exported.events
    assert (event.name, event.time_unix_nano, event.attributes[0].value.int_value) == ("chunk", 1_500, 1)
    assert [each.span_id for each in exported.links] == [link.span_id.to_bytes(8, "big")]
    resource = kept.requests[0].resource_spans[0].resource
    names = {attribute.key: attribute.value.string_value for attribute in resource.attributes}
    assert (names["service.name"], names["service.instance.id"]) == ("batchyard-worker", "worker-0")


def test_many_arrive_all(collector):
    kept, endpoint = collector
    export = SpanExport(endpoint, "s", "1")
    for n in range(3_000):
        export.put(span(f"{n}"))
    export.shutdown(10)
    assert [each.name for each in kept.spans] == [f"{n}" for n in range(3_000)]
    assert export.dropped == 0


def test_a_collector_that_stands_still_holds_up_nobody(collector):
    kept, endpoint = collector
    kept.answers.clear()
    export = SpanExport(endpoint, "s", "1", queue=1000)
    slowest = 0.0
    for n in range(5_000):
        started = time.perf_counter()
        export.put(span(f"{n}"))
        slowest = max(slowest, time.perf_counter() - started)
    assert slowest < 0.5  # a scheduler that shares the core may take its turn
    assert len(export._queue) <= 1000
    assert export.dropped >= 3_000
    started = time.monotonic()
    export.shutdown(0.2)
    assert time.monotonic() - started < 2


def test_a_collector_that_is_away_is_told_of_once_and_found_again():
    port = free_port()
    with structlog.testing.capture_logs() as lines:
        export = SpanExport(f"http://127.0.0.1:{port}", "s", "1", timeout_s=0.2)
        for _ in range(3):
            lost = export.dropped
            export.put(span())
            wait_for(lambda lost=lost: export.dropped > lost)
        assert [line["event"] for line in lines] == ["traces_are_lost"]
        kept = Collector()
        server, _ = serve(kept, port)
        server.start()

        def arrived():
            export.put(span())
            return kept.spans

        wait_for(arrived)
        wait_for(lambda: len(lines) == 2)
        export.shutdown(5)
        server.stop(0).wait()
    assert lines[1]["event"] == "traces_arrive_again"
    assert lines[1]["lost"] >= 3


def test_without_a_collector_nothing_is_recorded():
    telemetry = Telemetry("batchyard-worker", "worker-0", None)
    assert not telemetry.spans.enabled
    telemetry.shutdown()
