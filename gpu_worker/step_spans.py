"""Steps as spans of the worker's own traces, linked to the requests in them that are sampled.

Steps that follow one another are told together, up to RUN_NS of them in one span: what a step costs then is a
few additions, however many rows are in it. One that prefills a sampled request has a span of its own besides.
"""

from collections.abc import Iterable

from batchyard.spans import Span, SpanRecorder, TraceContext, new_trace
from gpu_worker.observers import FinishedStep

RUN_NS = 250_000_000  # of steps that one span tells of
_MOST_LINKS = 128  # as OpenTelemetry's SDKs have it


class StepSpans:
    """Told of the steps in which a sampled request has a row."""

    def __init__(self, recorder: SpanRecorder, worker_id: str) -> None:
        self._recorder = recorder
        self._worker_id = worker_id
        self._run: _Run | None = None

    def step(self, step: FinishedStep, rows: Iterable[TraceContext]) -> None:
        """`rows` are the sampled ones that there are."""
        if self._run and _started_ns(step) - self._run.started_ns >= RUN_NS:
            self.flush()
        if self._run is None:
            self._run = _Run(step, rows)
        self._run.add(step)

    def joined(self, row: TraceContext) -> None:
        """One more sampled request has a row from this step on."""
        if self._run:
            self._run.links[row] = None

    def prefilled(self, step: FinishedStep, rows: Iterable[TraceContext]) -> None:
        """`rows` are the sampled ones that have a chunk in the step."""
        run = _Run(step, rows)
        run.add(step)
        self._recorder.add(run.span(self._worker_id))

    def flush(self) -> None:
        """Makes a span of the steps that wait for it."""
        if self._run:
            self._recorder.add(self._run.span(self._worker_id))
            self._run = None


class _Run:
    """Steps that followed one another."""

    def __init__(self, first: FinishedStep, rows: Iterable[TraceContext]) -> None:
        self.started_ns = _started_ns(first)
        self.links = dict.fromkeys(rows)
        self._first = first.result.step
        self._ended_ns = 0
        self._graphs: set[str] = set()
        self._steps = self._rows = self._tokens = 0
        self._queue_us = self._forward_us = self._sample_us = self._longest_us = 0

    def add(self, step: FinishedStep) -> None:
        times, load = step.times, step.load
        self._steps += 1
        self._rows = max(self._rows, load.num_seqs)
        self._tokens += load.num_tokens
        self._queue_us += times.queue_us
        self._forward_us += times.forward_us
        self._sample_us += times.sample_us
        self._longest_us = max(self._longest_us, times.forward_us + times.sample_us)
        self._ended_ns = times.ended_ns
        self._graphs.add(load.graph or "none")

    def span(self, worker_id: str) -> Span:
        return Span(
            "step",
            new_trace(sampled=True),
            0,
            self.started_ns,
            self._ended_ns,
            {
                "batchyard.worker_id": worker_id,
                "batchyard.step": self._first,
                "batchyard.steps": self._steps,
                "batchyard.rows": self._rows,
                "batchyard.tokens": self._tokens,
                "batchyard.graph": ",".join(sorted(self._graphs)),
                "batchyard.queue_ms": self._queue_us / 1000,
                "batchyard.forward_ms": self._forward_us / 1000,
                "batchyard.sample_ms": self._sample_us / 1000,
                "batchyard.longest_ms": self._longest_us / 1000,
            },
            links=list(self.links)[:_MOST_LINKS],
        )


def _started_ns(step: FinishedStep) -> int:
    return step.times.ended_ns - 1000 * step.times.busy_us
