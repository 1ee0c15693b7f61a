"""Spans on their way to a collector, by OTLP over gRPC, on a thread of their own.

A collector that is slow or away costs nobody anything: what waits is bounded, and the oldest goes first.
"""

import logging
import threading
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import structlog

from batchyard.spans import Span, TraceContext

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import SpanContext

log = structlog.get_logger()

QUEUE_SPANS = 16_384  # about a kilobyte each
_BATCH = 512
_EVERY_S = 0.5
_TIMEOUT_S = 10.0


class SpanExport:
    """Sends spans of one service to `endpoint`. To be shut down."""

    def __init__(
        self,
        endpoint: str,
        service: str,
        instance: str,
        queue: int = QUEUE_SPANS,
        timeout_s: float = _TIMEOUT_S,
    ) -> None:
        """`endpoint` is the collector's gRPC address, e.g. http://127.0.0.1:4317.

        A batch that it has not taken in `timeout_s` seconds, with all attempts, is lost.
        """
        self.dropped = 0
        """Spans that went nowhere, so far."""
        self._endpoint = endpoint
        self._names = {"service.name": service, "service.instance.id": instance}
        self._timeout_s = timeout_s
        self._queue: deque[Span] = deque(maxlen=queue)
        self._failing = False
        self._ending = False
        self._wake = threading.Event()
        self._exporter: SpanExporter | None = None
        self._thread = threading.Thread(target=self._run, name="spans", daemon=True)
        self._thread.start()

    def put(self, span: Span) -> None:
        """Sends `span` soon. Never waits; for any thread."""
        if len(self._queue) == self._queue.maxlen:
            self.dropped += 1
        self._queue.append(span)
        if len(self._queue) >= _BATCH and not self._wake.is_set():
            self._wake.set()

    def shutdown(self, seconds: float) -> None:
        """Sends what is left, as far as that takes no more than `seconds`."""
        self._ending = True
        self._wake.set()
        self._thread.join(seconds)
        if self._exporter:
            self._exporter.shutdown()

    def _run(self) -> None:
        # Imported here: it takes a sixth of a scheduler's start, and one that died is waited for.
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        # It would say so of each batch; once is enough, and we do.
        logging.getLogger("opentelemetry.exporter.otlp").setLevel(logging.CRITICAL + 1)
        insecure = self._endpoint.startswith("http://")
        self._exporter = OTLPSpanExporter(self._endpoint, insecure=insecure, timeout=self._timeout_s)
        convert = _Converter(self._names)
        while not self._ending:
            self._wake.wait(_EVERY_S)
            self._wake.clear()
            self._send_all(self._exporter, convert)
        self._send_all(self._exporter, convert)

    def _send_all(self, exporter: "SpanExporter", convert: "_Converter") -> None:
        """What is in the queue now, until a batch fails."""
        left = len(self._queue)
        while left > 0:
            # Only this thread makes it shorter: what `put` pushes out, it replaces.
            batch = [self._queue.popleft() for _ in range(min(left, _BATCH))]
            left -= _BATCH
            if not self._send(exporter, convert, batch):
                return

    def _send(self, exporter: "SpanExporter", convert: "_Converter", batch: Sequence[Span]) -> bool:
        from opentelemetry.sdk.trace.export import SpanExportResult

        reason = "it does not take them"
        try:
            sent = exporter.export([convert(span) for span in batch]) is SpanExportResult.SUCCESS
        except Exception as error:  # whatever it is, tracing must not end for it
            sent, reason = False, repr(error)
        if not sent:
            self.dropped += len(batch)
        if sent == self._failing:
            self._failing = not sent
            if self._failing:
                log.warning("traces_are_lost", collector=self._endpoint, reason=reason)
            else:
                log.info("traces_arrive_again", collector=self._endpoint, lost=self.dropped)
        return sent


class _Converter:
    """From our spans to the SDK's, which the exporter wants."""

    def __init__(self, names: dict[str, str]) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        self._resource = Resource.create(names)
        self._scope = InstrumentationScope("batchyard")

    def __call__(self, span: Span) -> "ReadableSpan":
        from opentelemetry.sdk.trace import Event, ReadableSpan
        from opentelemetry.trace import Link, SpanKind, Status, StatusCode

        context = span.context
        parent = context._replace(span_id=span.parent_id) if span.parent_id else None
        return ReadableSpan(
            name=span.name,
            context=_sdk(context),
            parent=_sdk(parent, is_remote=span.is_server) if parent else None,
            resource=self._resource,
            attributes=span.attributes,
            events=[Event(event.name, event.attributes, event.at_ns) for event in span.events],
            links=[Link(_sdk(link)) for link in span.links],
            kind=SpanKind.SERVER if span.is_server else SpanKind.INTERNAL,
            status=Status(StatusCode.ERROR) if span.failed else Status(),
            start_time=span.start_ns,
            end_time=max(span.start_ns, span.end_ns),
            instrumentation_scope=self._scope,
        )


def _sdk(context: TraceContext, *, is_remote: bool = False) -> "SpanContext":
    from opentelemetry.trace import SpanContext, TraceFlags

    # Exported is what sampled means to those who come after us, whenever that was decided.
    return SpanContext(context.trace_id, context.span_id, is_remote, TraceFlags(TraceFlags.SAMPLED))
