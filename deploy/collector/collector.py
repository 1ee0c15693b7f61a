"""A small trace collector for where Jaeger cannot be had: OTLP over gRPC in, JSON and a page over HTTP out.

It keeps the newest traces in memory.

    GET /                      the same as a page, a trace as a waterfall
    GET /traces                the newest traces: id, name, milliseconds, services, number of spans
    GET /traces?service=NAME   those that this service has a part in
    GET /traces/TRACE_ID       the spans of one trace in order of their start

Run it by docker-compose.collector.yml, or with Batchyard installed: `python deploy/collector/collector.py`.
"""

import json
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

MAX_TRACES = 10_000
PAGE = Path(__file__).parent / "page.html"

Json = dict[str, Any]


class Traces:
    """The newest traces, by their id; when there are too many, the oldest goes. Safe to use in any thread."""

    def __init__(self, max_traces: int = MAX_TRACES) -> None:
        self._max_traces = max_traces
        self._spans: OrderedDict[str, list[Json]] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, trace_id: str, span: Json) -> None:
        """Adds a span that has ended."""
        with self._lock:
            self._spans.setdefault(trace_id, []).append(span)
            if len(self._spans) > self._max_traces:
                self._spans.popitem(last=False)

    def spans(self, trace_id: str) -> list[Json]:
        """The spans of a trace in order of their start; none where it is unknown."""
        with self._lock:
            return sorted(self._spans.get(trace_id, []), key=lambda span: int(span["start_ns"]))

    def summaries(self, service: str | None = None) -> list[Json]:
        """One line per trace, the newest first; only those that `service` has a part in, if one is given."""
        with self._lock:
            trace_ids = list(reversed(self._spans))
        summaries = [_summary(trace_id, spans) for trace_id in trace_ids if (spans := self.spans(trace_id))]
        return [summary for summary in summaries if service is None or service in summary["services"]]


class Receiver(TraceServiceServicer):
    """OTLP's TraceService: adds what it is sent to `traces`."""

    def __init__(self, traces: Traces) -> None:
        self._traces = traces

    def Export(  # noqa: N802  (gRPC's name)
        self, request: ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> ExportTraceServiceResponse:
        """Takes a batch of spans."""
        for resource in request.resource_spans:
            of_resource = {a.key: _plain(a.value) for a in resource.resource.attributes}
            service = str(of_resource.get("service.name", ""))
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self._traces.add(span.trace_id.hex(), _span(service, span))
        return ExportTraceServiceResponse()


def serve_otlp(traces: Traces, address: str) -> tuple[grpc.Server, int]:
    """Starts to take OTLP at host:port; returns the server and its port."""
    server = grpc.server(ThreadPoolExecutor(max_workers=4))
    add_TraceServiceServicer_to_server(Receiver(traces), server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port(address)
    server.start()
    return server, port


def serve_http(traces: Traces, host: str, port: int) -> ThreadingHTTPServer:
    """A server that shows `traces`, for the caller to run."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            path = url.path.strip("/")
            trace_id = path.removeprefix("traces/")
            if path == "":
                self._send(200, "text/html; charset=utf-8", PAGE.read_bytes())
            elif path == "traces":
                service = parse_qs(url.query).get("service", [None])[0]
                self._answer(200, traces.summaries(service))
            elif spans := traces.spans(trace_id):
                self._answer(200, spans)
            else:
                self._answer(404, {"error": f"there is no trace {trace_id}; see /traces"})

        def _answer(self, status: int, body: list[Json] | Json) -> None:
            self._send(status, "application/json", json.dumps(body, indent=1).encode())

        def _send(self, status: int, content_type: str, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    return ThreadingHTTPServer((host, port), Handler)


def _span(service: str, span: Span) -> Json:
    return {
        "service": service,
        "name": span.name,
        "span_id": span.span_id.hex(),
        "parent_id": span.parent_span_id.hex(),
        "start_ns": span.start_time_unix_nano,
        "milliseconds": (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6,
        "attributes": {a.key: _plain(a.value) for a in span.attributes},
        "events": [
            {"name": e.name, "time_ns": e.time_unix_nano, **{a.key: _plain(a.value) for a in e.attributes}}
            for e in span.events
        ],
        "links": [{"trace_id": link.trace_id.hex(), "span_id": link.span_id.hex()} for link in span.links],
        "failed": span.status.code == span.status.STATUS_CODE_ERROR,
    }


def _plain(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_plain(item) for item in value.array_value.values]
    return (
        getattr(value, kind) if kind in ("string_value", "bool_value", "int_value", "double_value") else None
    )


def _summary(trace_id: str, spans: list[Json]) -> Json:
    first = spans[0]
    end_ms = max((span["start_ns"] - first["start_ns"]) / 1e6 + span["milliseconds"] for span in spans)
    return {
        "trace_id": trace_id,
        "name": first["name"],
        "milliseconds": end_ms,
        "services": sorted({span["service"] for span in spans}),
        "spans": len(spans),
    }


if __name__ == "__main__":
    collected = Traces()
    otlp, _ = serve_otlp(collected, "0.0.0.0:4317")  # kept: gRPC stops a server that nobody holds
    serve_http(collected, "0.0.0.0", 16686).serve_forever()
