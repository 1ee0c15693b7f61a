"""Traces of a process: what records its spans, and what sends them to a collector."""

from batchyard.span_export import SpanExport
from batchyard.spans import SpanRecorder

_FAREWELL_S = 2.0  # for what is left when the process ends


class Telemetry:
    """Made when a process starts, shut down when it ends."""

    def __init__(self, service: str, instance: str, otlp: str | None, sample: float = 1.0) -> None:
        """`otlp` is the collector's gRPC endpoint; without one no spans are made. See `SpanRecorder`."""
        self._export = SpanExport(otlp, service, instance) if otlp else None
        self.spans = SpanRecorder(self._export.put, sample) if self._export else SpanRecorder()

    def shutdown(self) -> None:
        """Sends what is left, if somebody takes it. Called once, when the process ends."""
        if self._export:
            self._export.shutdown(_FAREWELL_S)
