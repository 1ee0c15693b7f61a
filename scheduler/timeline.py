"""Where the time of one request goes: without a row, reading its prompt, writing its answer.

    waiting ──got_row──▶ prefill ──first_token──▶ decode ──end──▶ over
       ▲                    │                       │
       └─────lost_row───────┴───────────────────────┘

It is told of what happens to a request, never of its tokens, so that a steady step pays nothing.
"""

import time
from collections.abc import Callable
from enum import Enum, StrEnum, auto

from protos.scheduling_pb2 import Timing


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

    __slots__ = (
        "_clock",
        "_losses",
        "_ns",
        "_phase",
        "_requeued_ns",
        "_since",
        "_tokens",
        "chunks",
        "worker",
    )

    def __init__(self, clock: Callable[[], int] = time.time_ns) -> None:
        """`clock` gives nanoseconds. The request waits."""
        self.chunks = 0  # of its prompt, in all of its rows
        self.worker = ""  # that had it last
        self._clock = clock
        self._phase = Phase.WAITING
        self._since = clock()
        self._ns = dict.fromkeys(Phase, 0)
        self._requeued_ns = 0
        self._losses = dict.fromkeys(Loss, 0)
        self._tokens: tuple[int, int] | None = None  # that its first row found, by tier

    @property
    def preemptions(self) -> int:
        """How often it lost its row to others."""
        return self._losses[Loss.PREEMPTED]

    def got_row(self, worker: str, device_tokens: int, host_tokens: int) -> None:
        """It is prefilled from now on, but for what was found cached."""
        self._enter(Phase.PREFILL)
        if self._tokens is None:
            self._tokens = device_tokens, host_tokens
        self.worker = worker

    def first_token(self) -> None:
        """A token has come of its row for the first time."""
        self._enter(Phase.DECODE)

    def lost_row(self, loss: Loss) -> None:
        """It waits again. Does nothing where it has no row: it was lost before."""
        if self._phase in (Phase.PREFILL, Phase.DECODE):
            self._losses[loss] += 1
            self._enter(Phase.WAITING)

    def end(self) -> None:
        """It is over, as it may be already."""
        self._enter(Phase.OVER)

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

    def _enter(self, phase: Phase) -> None:
        now = self._clock()
        spent = max(0, now - self._since)  # clocks are set back at times
        self._ns[self._phase] += spent
        if self._phase is Phase.WAITING and self._tokens is not None:
            self._requeued_ns += spent
        self._since = now
        self._phase = phase
