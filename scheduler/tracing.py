"""The scheduler's part of a request's trace: its waits by what it waited for, and its rows.

    scheduler.queue ──▶ prefix.match ──▶ scheduler.run ──▶ over
                             ▲                │ loses its row
                             └── preempted | retry | migrate

All are children of the gateway's span. A worker's spans are children of the `scheduler.run` that it serves.
"""

from collections.abc import Iterable

from batchyard.spans import OFF, Span, SpanRecorder, TraceContext, Value, parse_traceparent
from protos.scheduling_pb2 import Submit
from scheduler.prompt_log import PromptWork
from scheduler.timeline import Loss, Timeline

_WAITS = {
    None: "scheduler.queue",
    Loss.PREEMPTED: "preempted",
    Loss.WORKER_LOST: "retry",
    Loss.DRAINED: "migrate",
}


class RequestSpans:
    """Makes the timelines of requests, which write their spans where there is somebody to send them to."""

    def __init__(self, recorder: SpanRecorder = OFF) -> None:
        self._recorder = recorder

    def timeline(self, submit: Submit, waiting: int) -> Timeline:
        """Of a request that has just come, behind `waiting` others."""
        parent = parse_traceparent(submit.traceparent) if self._recorder.enabled else None
        if parent is None:
            return Timeline(submit.traceparent)
        about: dict[str, Value] = {
            "batchyard.request_id": submit.request_id,
            "batchyard.requests_before": waiting,
            "gen_ai.usage.input_tokens": submit.prompt_len,
        }
        if submit.accepted:
            about["batchyard.resubmitted"] = True
        return Timeline(submit.traceparent, RequestTrace(self._recorder, parent, about))

    def keep(self, trace_ids: Iterable[int]) -> None:
        """These traces are to be exported, though they were not sampled."""
        for trace_id in trace_ids:
            self._recorder.keep(trace_id)


class RequestTrace:
    """Writes the spans of one request. Times are Unix, ns."""

    __slots__ = ("_about", "_parent", "_recorder", "_row", "run")

    def __init__(self, recorder: SpanRecorder, parent: TraceContext, about: dict[str, Value]) -> None:
        """`about` is told with its first wait."""
        self.run: TraceContext | None = None  # while it has a row
        self._recorder = recorder
        self._parent = parent
        self._about = about
        self._row: dict[str, Value] = {}

    def waited(
        self, loss: Loss | None, start_ns: int, end_ns: int, work: PromptWork, why: dict[str, Value]
    ) -> None:
        """For a row: the first one, or another one after a `loss`. `work` is the worker's meanwhile."""
        attributes = (self._about if loss is None else {}) | why
        if work.tokens:
            attributes["batchyard.prompt_ms"] = round(min(work.ms, (end_ns - start_ns) / 1e6), 3)
            attributes["batchyard.prompt_tokens"] = work.tokens
        self._add(_WAITS[loss], self._parent.child(), start_ns, end_ns, attributes)

    def matched(self, start_ns: int, end_ns: int, device_tokens: int, host_tokens: int) -> None:
        """So many of its tokens were found cached, by tier; now it has a row."""
        found: dict[str, Value] = {
            "batchyard.device_tokens": device_tokens,
            "batchyard.host_tokens": host_tokens,
        }
        self._add("prefix.match", self._parent.child(), start_ns, end_ns, found)
        self.run = self._parent.child()

    def ran(self, start_ns: int, end_ns: int, why: dict[str, Value]) -> None:
        """It has had a row."""
        if self.run:
            self._add("scheduler.run", self.run, start_ns, end_ns, why)
            self.run = None

    def _add(
        self, name: str, context: TraceContext, start_ns: int, end_ns: int, attributes: dict[str, Value]
    ) -> None:
        self._recorder.add(Span(name, context, self._parent.span_id, start_ns, end_ns, attributes))
