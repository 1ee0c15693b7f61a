"""The scheduler's part of a request's trace: how long it waited, and what the prefix match found."""

import time

from opentelemetry.trace import Tracer

from batchyard.telemetry import is_sampled, parent_context
from scheduler.request import Request


class RequestSpans:
    """Spans are made after the fact, with explicit times, so that requests without a trace cost nothing."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def admitted(self, request: Request, cached_tokens: int, started_ns: int) -> None:
        """`request` got a row: it was matched from `started_ns` on, and waited until then."""
        if not is_sampled(request.parent):
            return
        context = parent_context(request.parent)
        queue = self._tracer.start_span(
            "scheduler.queue",
            context,
            start_time=request.queued_at_ns,
            attributes={"batchyard.preemptions": request.preemptions},
        )
        queue.end(started_ns)
        match = self._tracer.start_span(
            "prefix.match",
            context,
            start_time=started_ns,
            attributes={
                "batchyard.cached_tokens": cached_tokens,
                "gen_ai.usage.input_tokens": request.prompt_len,
            },
        )
        match.end(time.time_ns())
