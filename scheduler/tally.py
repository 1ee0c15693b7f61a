"""What a worker has done since the scheduler started, over all of its streams."""

import math
import time

from scheduler.batcher import Batcher, Step
from scheduler.cache_counts import CacheCounts
from scheduler.meter import Meter


class Tally:
    """Counts for metrics, and when what happened last; in the seconds of `time.monotonic`."""

    def __init__(self) -> None:
        self.streams = 0  # opened so far: with each the worker may have another cache
        self.steps = 0
        self.step_seconds = 0.0  # sum over answered steps, from sending to answer
        self.tokens = 0
        self.rate = Meter()  # of these
        self.last_step: Step | None = None  # answered, of those that computed something
        self.last_busy_us = 0  # and how long it did
        self.losses = 0  # streams that broke
        self.last_result = time.monotonic()
        self.lost_at = -math.inf  # when the last stream ended
        self._caches = CacheCounts()  # on streams before this one

    def connected(self) -> None:
        """A stream has been opened."""
        self.streams += 1
        self.last_result = time.monotonic()

    def answered(self, step: Step, delivered: int, busy_us: int) -> None:
        """`step` brought so many tokens, and was computed in so many microseconds."""
        self.last_result = time.monotonic()
        self.steps += 1
        self.step_seconds += self.last_result - step.sent_at
        self.tokens += delivered
        self.rate.count(delivered, self.last_result)
        if step.num_tokens:  # else it only told the worker of rows that are over
            self.last_step, self.last_busy_us = step, busy_us

    def ended(self, batcher: Batcher) -> None:
        """The stream over which these books were kept is over."""
        self.lost_at = time.monotonic()
        self._caches += CacheCounts.of(batcher)

    def caches(self, batcher: Batcher | None) -> CacheCounts:
        """Those of `batcher`, if there is a stream, included."""
        return self._caches + CacheCounts.of(batcher) if batcher else self._caches
