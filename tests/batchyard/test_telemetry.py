from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span as ExportedSpan
from opentelemetry.trace import INVALID_SPAN, NonRecordingSpan, SpanContext, TraceFlags

from batchyard.telemetry import Telemetry, is_sampled, parent_context, parse_traceparent, traceparent_of


def span(trace_id: int, span_id: int, sampled: bool) -> NonRecordingSpan:
    return NonRecordingSpan(SpanContext(trace_id, span_id, False, TraceFlags(int(sampled))))


class TestTraceparent:
    @given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1))
    def test_round_trip(self, trace_id, span_id):
        context = parse_traceparent(traceparent_of(span(trace_id, span_id, True)))
        assert context is not None
        assert (context.trace_id, context.span_id) == (trace_id, span_id)
        assert context.is_remote
        assert is_sampled(context)

    def test_example_of_the_specification(self):
        text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        context = parse_traceparent(text)
        assert context is not None
        assert traceparent_of(NonRecordingSpan(context)) == text

    def test_what_is_not_sampled_has_none(self):
        assert traceparent_of(span(1, 2, False)) == ""
        assert traceparent_of(INVALID_SPAN) == ""

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "nonsense",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ],
    )
    def test_malformed_is_none(self, text):
        assert parse_traceparent(text) is None

    @given(st.text())
    def test_never_an_error(self, text):
        parse_traceparent(text)

    def test_not_sampled_is_parsed(self):
        context = parse_traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00")
        assert context is not None
        assert not is_sampled(context)

    def test_no_parent(self):
        assert parent_context(None) is None
        assert not is_sampled(None)


class Collector(TraceServiceServicer):
    """Keeps what is exported to it."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []

    def Export(self, request: ExportTraceServiceRequest, context: object) -> ExportTraceServiceResponse:
        self.requests.append(request)
        return ExportTraceServiceResponse()

    @property
    def spans(self) -> list[ExportedSpan]:
        scopes = [s for r in self.requests for resource in r.resource_spans for s in resource.scope_spans]
        return [span for scope in scopes for span in scope.spans]


@pytest.fixture
def collector() -> Iterator[tuple[Collector, str]]:
    kept = Collector()
    server = grpc.server(ThreadPoolExecutor(1))
    add_TraceServiceServicer_to_server(kept, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield kept, f"http://127.0.0.1:{port}"
    server.stop(0).wait()


class TestExport:
    def test_spans_reach_the_collector(self, collector):
        kept, endpoint = collector
        telemetry = Telemetry("batchyard-worker", "worker-0", endpoint, 1.0)
        parent = parse_traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        with telemetry.tracer.start_as_current_span("prefill", parent_context(parent)) as span:
            span.set_attribute("tokens", 3)
            assert traceparent_of(span).startswith("00-0af7651916cd43dd8448eb211c80319c-")
        telemetry.shutdown()
        (exported,) = kept.spans
        assert exported.name == "prefill"
        assert exported.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
        assert exported.parent_span_id.hex() == "b7ad6b7169203331"
        assert [(a.key, a.value.int_value) for a in exported.attributes] == [("tokens", 3)]
        resource = kept.requests[0].resource_spans[0].resource
        names = {attribute.key: attribute.value.string_value for attribute in resource.attributes}
        assert names["service.name"] == "batchyard-worker"
        assert names["service.instance.id"] == "worker-0"

    def test_sampling_follows_the_parent_first(self, collector):
        kept, endpoint = collector
        telemetry = Telemetry("batchyard-worker", "worker-0", endpoint, 0.0)
        with telemetry.tracer.start_as_current_span("new") as span:
            assert traceparent_of(span) == ""
        sampled = parse_traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        with telemetry.tracer.start_as_current_span("child", parent_context(sampled)):
            pass
        telemetry.shutdown()
        assert [span.name for span in kept.spans] == ["child"]

    def test_without_a_collector_nothing_is_recorded(self):
        telemetry = Telemetry("batchyard-worker", "worker-0", None, 1.0)
        with telemetry.tracer.start_as_current_span("span") as span:
            assert not span.is_recording()
            assert traceparent_of(span) == ""
        telemetry.shutdown()
