"""A circuit breaker for each worker: one that is lost again and again is left alone for a while.

    closed ──MOST losses in WINDOW──▶ open for a pause ──▶ probing: little work
      ▲                                      ▲                 │
      └────────────── PROBE steps answered ──┼─────────────────┤
                                             └───── lost ──────┘   the pause doubles, up to LONGEST

A worker that flaps costs every request that is on it a prefill elsewhere each time. While its breaker is open
it is not connected to; while it probes it gets one request at a time. A single accident opens nothing: a
worker that was killed, and has been started again, is used at once.
"""

from collections import deque
from collections.abc import Callable

MOST = 5  # losses
WINDOW = 60.0  # seconds
SHORTEST, LONGEST = 1.0, 60.0  # seconds of a pause
PROBE = 32  # steps: a fault that comes with load comes within that many, and they take a second at most
PROBE_REQUESTS = 1


class Breaker:
    """Of one worker. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.opened = 0  # how often
        self._clock = clock
        self._losses: deque[float] = deque()
        self._pause = 0.0  # the last one; 0 while closed
        self._to_prove = 0

    @property
    def is_probing(self) -> bool:
        """Whether the worker has yet to show that it can be used again."""
        return self._to_prove > 0

    def lost(self) -> float:
        """The worker was lost. For how many seconds it is to be left alone."""
        now = self._clock()
        self._losses.append(now)
        while self._losses[0] <= now - WINDOW:
            self._losses.popleft()
        if not self.is_probing and len(self._losses) < MOST:
            return 0.0
        self._pause = min(LONGEST, 2 * self._pause) or SHORTEST
        self._to_prove = PROBE
        self.opened += 1
        return self._pause

    def answered(self) -> None:
        """The worker has answered a step as it should."""
        if self._to_prove:
            self._to_prove -= 1
            if not self._to_prove:
                self._losses.clear()
                self._pause = 0.0
