"""Where the time of one request goes: without a row, reading its prompt, writing its answer.

    waiting ──got_row──▶ prefill ──first_token──▶ decode ──end──▶ over
       ▲                    │                       │
       └─────lost_row───────┴───────────────────────┘

It is told of what happens to a request, never of its tokens, so that a steady step pays nothing. Where the
request is traced, each wait and each row becomes a span when it is over.
"""

import time
from collections.abc import Callable
from enum import Enum, StrEnum, auto
from typing import TYPE_CHECKING

from batchyard.spans import Value
from protos.scheduling_pb2 import Timing
from scheduler.prompt_log import PromptLog, PromptWork

if TYPE_CHECKING:
    from scheduler.tracing import RequestTrace


class Loss(StrEnum):
    """Why a request lost its row and goes on elsewhere, or later."""

    PREEMPTED = "preempted"
    WORKER_LOST = "worker_lost"
    DRAINED = "drained"


class Phase(Enum):
    """What a request does. Each moment of it is in one of these."""

    WAITING = auto()
    PREFILL = auto()
    DECODE = auto()
    OVER = auto()


class Timeline:
    """Of one request, from when this scheduler got it on."""

    def __init__(
        self,
        traceparent: str = "",
        trace: "RequestTrace | None" = None,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        """The request waits. `traceparent` is its W3C trace context, as the gateway gave it.

        `trace` is where its spans go. `clock` gives Unix time in nanoseconds.
        """
        self.chunks = 0  # of its prompt, in all of its rows
        self.worker = ""  # that had it last
        self._clock = clock
        self._traceparent = traceparent
        self._trace = trace
        self._phase = Phase.WAITING
        self._since = clock()
        self._part_since = self._since  # when this wait began, or this row
        self._ns = dict.fromkeys(Phase, 0)
        self._requeued_ns = 0
        self._losses = dict.fromkeys(Loss, 0)
        self._loss: Loss | None = None  # after which it waits
        self._why: dict[str, Value] = {}  # and what is to be told of it
        self._tokens: tuple[int, int] | None = None  # that its first row found, by tier

    @property
    def preemptions(self) -> int:
        """How often it lost its row to others."""
        return self._losses[Loss.PREEMPTED]

    @property
    def traceparent(self) -> str:
        """The W3C trace context for the worker that it runs on; empty where nobody traces it."""
        return self._trace.run.traceparent if self._trace and self._trace.run else self._traceparent

    def got_row(
        self, worker: str, device_tokens: int, host_tokens: int, looked_ns: int, prompts: PromptLog
    ) -> None:
        """It is prefilled from now on, but for what was found cached by a search that began at `looked_ns`.

        `prompts` are those that its worker has computed.
        """
        since = self._part_since
        self._enter(Phase.PREFILL)
        self._part_since = self._since
        if self._tokens is None:
            self._tokens = device_tokens, host_tokens
        self.worker = worker
        if self._trace:
            looked_ns = min(max(since, looked_ns), self._since)
            self._trace.waited(self._loss, since, looked_ns, prompts.since(since), self._why)
            self._trace.matched(looked_ns, self._since, device_tokens, host_tokens)

    def first_token(self) -> None:
        """A token has come of its row for the first time."""
        self._enter(Phase.DECODE)

    def lost_row(self, loss: Loss, cause: str = "", at_ns: int | None = None) -> None:
        """It waits again, since `at_ns` or from now on. Does nothing where it has no row: it was lost before.

        `cause` says more of the loss, in a word.
        """
        if self._phase not in (Phase.PREFILL, Phase.DECODE):
            return
        self._losses[loss] += 1
        since = self._part_since
        self._enter(Phase.WAITING, at_ns)
        self._part_since = self._since
        self._loss = loss
        if self._trace:
            self._trace.ran(since, self._since, self._told(loss.value))
            self._why = {"batchyard.cause": cause, "batchyard.worker_id": self.worker}

    def end(self, why: str) -> None:
        """It is over, as it may be already. `why` is a word."""
        phase, since = self._phase, self._part_since
        self._enter(Phase.OVER)
        if self._trace is None or phase is Phase.OVER:
            return
        if phase is Phase.WAITING:
            told = self._why | {"batchyard.ended": why}
            self._trace.waited(self._loss, since, self._since, PromptWork(0, 0), told)
        else:
            self._trace.ran(since, self._since, self._told(why))

    def timing(self) -> Timing:
        """All of it so far."""
        self._enter(self._phase)
        device_tokens, host_tokens = self._tokens or (0, 0)
        return Timing(
            queued_ms=self._ns[Phase.WAITING] / 1e6,
            requeued_ms=self._requeued_ns / 1e6,
            prefill_ms=self._ns[Phase.PREFILL] / 1e6,
            decode_ms=self._ns[Phase.DECODE] / 1e6,
            device_tokens=device_tokens,
            host_tokens=host_tokens,
            chunks=self.chunks,
            preemptions=self._losses[Loss.PREEMPTED],
            retries=self._losses[Loss.WORKER_LOST],
            migrations=self._losses[Loss.DRAINED],
            worker_id=self.worker,
        )

    def _told(self, ended: str) -> dict[str, Value]:
        return {
            "batchyard.worker_id": self.worker,
            "batchyard.ended": ended,
            "batchyard.chunks": self.chunks,
        }

    def _enter(self, phase: Phase, at_ns: int | None = None) -> None:
        now = self._clock() if at_ns is None else max(at_ns, self._since)
        spent = max(0, now - self._since)  # clocks are set back at times
        self._ns[self._phase] += spent
        if self._phase is Phase.WAITING and self._tokens is not None:
            self._requeued_ns += spent
        self._since = now
        self._phase = phase
