"""The worker's part of a request's trace, `prefill` and `decode`, and a span for each step with one.

Spans are made when a step is finished, with explicit times: a step itself pays nothing.
"""

from collections.abc import Iterable

from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, Tracer

from batchyard.telemetry import is_sampled, parent_context, parse_traceparent
from gpu_worker.observers import FinishedStep
from protos.packing import unpack_i32
from protos.step_pb2 import NewRow


class WorkerSpans:
    """A `StepObserver` that makes spans of requests that are sampled."""

    def __init__(self, tracer: Tracer, worker_id: str) -> None:
        self._tracer = tracer
        self._worker_id = worker_id
        self._rows: dict[int, _RowSpans] = {}

    def observe(self, step: FinishedStep) -> None:
        """Goes through the step's rows as far as they are traced."""
        started_ns = step.times.ended_ns - step.times.busy_us * 1000
        for row in unpack_i32(step.batch.freed_rows).tolist():
            self._end(row, started_ns)
        for new_row in step.batch.new_rows:
            self._enter(new_row)
        if self._rows:
            self._observe_rows(step, started_ns)

    def reset(self) -> None:
        """Ends what is open."""
        for row in list(self._rows):
            self._end(row, None)

    def _enter(self, new_row: NewRow) -> None:
        parent = parse_traceparent(new_row.traceparent)
        if parent is not None and is_sampled(parent):
            attributes: dict[str, str | int] = {
                "batchyard.request_id": new_row.request_id,
                "batchyard.worker_id": self._worker_id,
                "batchyard.row": new_row.row,
            }
            self._rows[new_row.row] = _RowSpans(self._tracer, parent, attributes)

    def _end(self, row: int, at_ns: int | None) -> None:
        if spans := self._rows.pop(row, None):
            spans.end(at_ns)

    def _observe_rows(self, step: FinishedStep, started_ns: int) -> None:
        ended_ns = step.times.ended_ns
        chunk_rows = unpack_i32(step.batch.chunk_rows).tolist()
        chunk_lens = unpack_i32(step.batch.chunk_lens).tolist()
        sampled = set(unpack_i32(step.result.rows).tolist())
        for row, length in zip(chunk_rows, chunk_lens, strict=True):
            if spans := self._rows.get(row):
                spans.add_chunk(started_ns, ended_ns, length, last=row in sampled)
        sampled &= self._rows.keys()
        for row in sampled:
            self._rows[row].add_token(ended_ns)
        if taking_part := sampled | (self._rows.keys() & set(chunk_rows)):
            self._make_step_span(step, started_ns, (self._rows[row].parent for row in taking_part))

    def _make_step_span(self, step: FinishedStep, started_ns: int, requests: Iterable[SpanContext]) -> None:
        span = self._tracer.start_span(
            "step",
            Context(),  # a trace of its own
            links=[Link(request) for request in requests],
            start_time=started_ns,
            attributes={
                "batchyard.worker_id": self._worker_id,
                "batchyard.step": step.result.step,
                "batchyard.rows": step.load.num_seqs,
                "batchyard.tokens": step.load.num_tokens,
                "batchyard.queue_ms": step.times.queue_us / 1000,
                "batchyard.forward_ms": step.times.forward_us / 1000,
                "batchyard.sample_ms": step.times.sample_us / 1000,
            },
        )
        span.end(step.times.ended_ns)


class _RowSpans:
    """The spans of one traced row: `prefill` from its first chunk to its last, then `decode`."""

    def __init__(self, tracer: Tracer, parent: SpanContext, attributes: dict[str, str | int]) -> None:
        self.parent = parent
        self._tracer = tracer
        self._attributes = attributes
        self._prefill: Span | None = None
        self._decode: Span | None = None
        self._tokens = 0

    def add_chunk(self, started_ns: int, ended_ns: int, length: int, *, last: bool) -> None:
        if self._prefill is None:
            self._prefill = self._start("prefill", started_ns)
        self._prefill.add_event("chunk", {"batchyard.tokens": length}, timestamp=ended_ns)
        if last:
            self._prefill.end(ended_ns)
            self._prefill = None

    def add_token(self, at_ns: int) -> None:
        if self._decode is None:
            self._decode = self._start("decode", at_ns)
        self._tokens += 1

    def end(self, at_ns: int | None) -> None:
        if self._prefill:
            self._prefill.end(at_ns)
        if self._decode:
            self._decode.set_attribute("batchyard.tokens", self._tokens)
            self._decode.end(at_ns)

    def _start(self, name: str, at_ns: int) -> Span:
        context = parent_context(self.parent)
        return self._tracer.start_span(name, context, start_time=at_ns, attributes=self._attributes)
