"""The worker's part of a request's trace, `prefill` and `decode`, and spans of steps that it takes part in.

Spans are made when a step is finished, with explicit times. A steady step, in which rows decode and none
comes or goes, is not looked at: how many tokens a row sampled follows from its first step and its last.
"""

from collections.abc import Sequence

from batchyard.spans import (
    Event,
    Span,
    SpanRecorder,
    TraceContext,
    Value,
    parse_traceparent,
    unpack_trace_ids,
)
from gpu_worker.observers import FinishedStep
from gpu_worker.step_spans import StepSpans
from protos.packing import unpack_i32
from protos.step_pb2 import NewRow


class WorkerSpans:
    """A `StepObserver` that makes spans of requests with a trace context, sampled or not."""

    def __init__(self, recorder: SpanRecorder, worker_id: str) -> None:
        self._recorder = recorder
        self._worker_id = worker_id
        self._steps = StepSpans(recorder, worker_id)
        self._rows: dict[int, _RowSpans] = {}
        self._sampled: dict[int, TraceContext] = {}  # of these
        self._prompt_tokens = 0  # of all steps so far
        self._prompt_tokens_before = 0  # but for the last one
        self._step = 0  # the last one
        self._ended_ns = 0  # its end

    def observe(self, step: FinishedStep) -> None:
        """Goes through what changes with the step."""
        batch, prompt_tokens = step.batch, self._prompt_tokens
        if batch.keep:
            for trace_id in unpack_trace_ids(batch.keep):
                self._recorder.keep(trace_id)
        if batch.freed_rows:
            for row in unpack_i32(batch.freed_rows).tolist():
                self._end(row, batch.step)
        for new_row in batch.new_rows:
            self._enter(new_row)
        if batch.chunk_rows:
            self._prefill(step)
        if self._sampled:
            self._steps.step(step, self._sampled.values())
        self._prompt_tokens_before = prompt_tokens
        self._step = batch.step
        self._ended_ns = step.times.ended_ns

    def reset(self) -> None:
        """Ends what is open."""
        for row in list(self._rows):
            self._end(row, self._step + 1)
        self._steps.flush()

    def _enter(self, new_row: NewRow) -> None:
        if parent := parse_traceparent(new_row.traceparent):
            about: dict[str, Value] = {
                "batchyard.request_id": new_row.request_id,
                "batchyard.worker_id": self._worker_id,
                "batchyard.row": new_row.row,
            }
            # It was sent while the step before was being computed, and has waited for that one.
            self._rows[new_row.row] = _RowSpans(parent, about, self._prompt_tokens_before)
            if parent.sampled:
                self._sampled[new_row.row] = parent
                self._steps.joined(parent)

    def _end(self, row: int, step: int) -> None:
        self._sampled.pop(row, None)
        if not self._sampled:
            self._steps.flush()
        if spans := self._rows.pop(row, None):
            for span in spans.end(self._ended_ns, step):
                self._recorder.add(span)

    def _prefill(self, step: FinishedStep) -> None:
        rows = unpack_i32(step.batch.chunk_rows).tolist()
        lengths = unpack_i32(step.batch.chunk_lens).tolist()
        sampled = set(unpack_i32(step.result.rows).tolist())
        total = sum(lengths)
        for row, length in zip(rows, lengths, strict=True):
            if spans := self._rows.get(row):
                spans.add_chunk(step, length, total, before=self._prompt_tokens, last=row in sampled)
        self._prompt_tokens += total
        if prefilled := [self._sampled[row] for row in rows if row in self._sampled]:
            self._steps.prefilled(step, prefilled)


class _RowSpans:
    """The spans of one traced row: `prefill` from its first chunk to its last, then `decode`."""

    def __init__(self, parent: TraceContext, about: dict[str, Value], prompt_tokens: int) -> None:
        """`prompt_tokens` of all steps that had begun before it could have."""
        self._parent = parent
        self._about = about
        self._seen = prompt_tokens
        self._chunks: list[Event] = []
        self._prefill_ns = 0  # its begin
        self._decode_ns = 0  # likewise
        self._first_step = 0  # in which it sampled; 0 before that

    def add_chunk(self, step: FinishedStep, length: int, total: int, *, before: int, last: bool) -> None:
        """`length` of the `total` prompt tokens of `step`; `before` were computed in all steps before it."""
        times = step.times
        if not self._chunks:
            self._prefill_ns = times.ended_ns - 1000 * times.busy_us
        attributes = {
            "batchyard.tokens": length,
            "batchyard.other_tokens": total - length,
            "batchyard.tokens_before": before - self._seen,
            "batchyard.rows": step.load.num_seqs,
            "batchyard.queue_ms": times.queue_us / 1000,
            "batchyard.step_ms": times.busy_us / 1000,
        }
        self._chunks.append(Event("chunk", times.ended_ns, attributes))
        self._seen = before + total
        if last:
            self._decode_ns = times.ended_ns
            self._first_step = step.batch.step

    def end(self, at_ns: int, step: int) -> list[Span]:
        """It takes no part in `step` any more; the one before ended at `at_ns`."""
        spans = []
        if self._chunks:
            ended_ns = self._decode_ns or at_ns
            spans.append(self._span("prefill", self._prefill_ns, ended_ns, {}, self._chunks))
        if self._first_step:
            told: dict[str, Value] = {
                "batchyard.first_step": self._first_step,
                "batchyard.tokens": step - self._first_step,
            }
            spans.append(self._span("decode", self._decode_ns, at_ns, told, ()))
        return spans

    def _span(
        self, name: str, start_ns: int, end_ns: int, told: dict[str, Value], events: Sequence[Event]
    ) -> Span:
        context, parent = self._parent.child(), self._parent.span_id
        return Span(name, context, parent, start_ns, end_ns, self._about | told, events)
