"""Traces: one tracer per process, exported by OTLP off the hot path; W3C trace context between processes."""

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, TraceFlags, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_W3C = TraceContextTextMapPropagator()


class Telemetry:
    """Makes the process's tracer, and flushes it at the end."""

    def __init__(self, service: str, instance: str, otlp: str | None, sample: float) -> None:
        """`otlp` is the collector's gRPC endpoint; without one, spans cost next to nothing and go nowhere."""
        resource = Resource.create({"service.name": service, "service.instance.id": instance})
        self._provider: TracerProvider | None = None
        if otlp:
            # Imported here: it takes a sixth of a scheduler's start, and one that died is waited for.
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

            self._provider = TracerProvider(resource=resource, sampler=ParentBased(TraceIdRatioBased(sample)))
            exporter = OTLPSpanExporter(endpoint=otlp, insecure=otlp.startswith("http://"))
            self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self.tracer: Tracer = self._provider.get_tracer("batchyard") if self._provider else trace.NoOpTracer()

    def shutdown(self) -> None:
        """Sends what is left. Called once, when the process ends."""
        if self._provider:
            self._provider.shutdown()


def traceparent_of(span: Span) -> str:
    """The W3C `traceparent` that makes `span` a parent elsewhere; empty when the span is not sampled."""
    context = span.get_span_context()
    if not (context.is_valid and context.trace_flags.sampled):
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def parse_traceparent(traceparent: str) -> SpanContext | None:
    """The span context in a W3C `traceparent`; None where it is empty or malformed (never an error)."""
    if not traceparent:
        return None
    span = trace.get_current_span(_W3C.extract({"traceparent": traceparent}))
    context = span.get_span_context()
    return context if context.is_valid else None


def parent_context(span_context: SpanContext | None) -> Context | None:
    """A context to start child spans of `span_context` in; None starts a new trace."""
    return trace.set_span_in_context(NonRecordingSpan(span_context)) if span_context else None


def is_sampled(span_context: SpanContext | None) -> bool:
    """Whether spans below this one will be exported."""
    return span_context is not None and bool(span_context.trace_flags & TraceFlags.SAMPLED)
