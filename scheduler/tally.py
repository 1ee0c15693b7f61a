"""What a worker has done since the scheduler started, over all of its streams."""

import math
import time

from batchyard.metrics.buckets import MOVE_S, ROWS, STEP_TOKENS
from batchyard.metrics.distribution import Distribution
from protos.step_pb2 import Moved
from scheduler.batcher import Batcher, Step
from scheduler.cache_counts import CacheCounts
from scheduler.meter import Meter
from scheduler.step_cost import Work
from scheduler.tiers import Tiers


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
        self.prompt_tokens = 0  # computed
        self.answer_tokens = 0  # computed: those of answers
        self.busy_us = 0  # the device computed
        self.rows = Distribution(ROWS)  # of each step
        self.step_tokens = Distribution(STEP_TOKENS)
        self.saves = Distribution(MOVE_S)  # seconds from being ordered to being done
        self.loads = Distribution(MOVE_S)
        self.losses = 0  # streams that broke
        self.last_result = time.monotonic()
        self.lost_at = -math.inf  # when the last stream ended
        self._caches = CacheCounts()  # on streams before this one

    @property
    def work(self) -> Work:
        """All of it so far."""
        return Work(self.steps, self.answer_tokens, self.prompt_tokens, self.busy_us / 1e6)

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
        self.prompt_tokens += step.num_prompt_tokens
        self.answer_tokens += step.num_tokens - step.num_prompt_tokens
        self.busy_us += busy_us
        self.rows.observe(step.num_rows)
        self.step_tokens.observe(step.num_tokens)

    def moved(self, tiers: Tiers, news: Moved) -> None:
        """`news` of moves has come, of which `tiers` has not heard yet."""
        now = time.monotonic()
        saves, loads = tiers.done_by(news)
        for save in saves:
            self.saves.observe(now - save.ordered_at)
        for load in loads:
            self.loads.observe(now - load.ordered_at)

    def ended(self, batcher: Batcher) -> None:
        """The stream over which these books were kept is over."""
        self.lost_at = time.monotonic()
        self._caches += CacheCounts.of(batcher)

    def caches(self, batcher: Batcher | None) -> CacheCounts:
        """Those of `batcher`, if there is a stream, included."""
        return self._caches + CacheCounts.of(batcher) if batcher else self._caches
