"""Follows the load, once a second, for `demand`."""

import asyncio
import math
from collections.abc import Sequence

from scheduler.core import Scheduler
from scheduler.demand import Use, growth, workers_wanted
from scheduler.drain import Size
from scheduler.lane import Lane
from scheduler.step_cost import StepCost, Work

_WINDOW = 30.0  # seconds: means forget over it, so that a second's burst is no reason for a worker
_KEEP = math.exp(-1.0 / _WINDOW)


class DemandMeter:
    """Reads the scheduler's books, and keeps means that forget. `wanted` may be read from any thread."""

    def __init__(self, scheduler: Scheduler, objective_s: float) -> None:
        """`objective_s`: seconds within which a first token should come."""
        self.wanted = 0.0  # workers
        self._scheduler = scheduler
        self._objective_s = objective_s
        self._rows, self._blocks, self._answers, self._prompts = (_Mean() for _ in range(4))
        self._cost = StepCost()
        self._done: dict[Lane, Work] = {}  # when last seen
        self._offered, self._begun = Size(), Size()  # in the window, with weights that fade
        self._seen = scheduler.door.offered, scheduler.door.begun

    async def run(self) -> None:
        """Looks once a second, until cancelled."""
        while True:
            await asyncio.sleep(1.0)
            self.look()

    def look(self) -> None:
        """A second has passed."""
        lanes = [lane for lane in self._scheduler.lanes if lane.takes_requests]
        self._take_work(lanes)
        self._take_arrivals()
        self.wanted = workers_wanted(
            len(lanes),
            self._use_of(lanes),
            growth(self._offered, self._begun),
            self._wait(lanes),
            self._objective_s,
        )

    def _take_work(self, lanes: Sequence[Lane]) -> None:
        before, self._done = self._done, {lane: lane.tally.work for lane in lanes}
        work = [done.since(before[lane]) for lane, done in self._done.items() if lane in before]
        self._answers.take(sum(each.answer_tokens for each in work))
        self._prompts.take(sum(each.prompt_tokens for each in work))
        self._cost.fade()
        for each in work:
            self._cost.observe(each)
        self._cost.learn()

    def _take_arrivals(self) -> None:
        door, (offered, begun) = self._scheduler.door, self._seen
        self._offered = self._offered.times(_KEEP).plus(door.offered.minus(offered))
        self._begun = self._begun.times(_KEEP).plus(door.begun.minus(begun))
        self._seen = door.offered, door.begun

    def _use_of(self, lanes: Sequence[Lane]) -> Use:
        batchers = [lane.batcher for lane in lanes if lane.batcher]
        if not batchers:
            return Use()
        max_rows = min(each.rows.max_rows for each in batchers)
        return Use(
            rows=self._rows.take(sum(each.rows.taken / each.rows.max_rows for each in batchers)),
            blocks=self._blocks.take(sum(each.pool.held / each.pool.num_blocks for each in batchers)),
            compute=self._cost.at_best(self._answers.value, self._prompts.value, max_rows),
        )

    def _wait(self, lanes: Sequence[Lane]) -> float:
        """Seconds until a request that comes now begins, or until the prompts in rows are computed."""
        door = self._scheduler.door
        backlog = sum(lane.batcher.backlog for lane in lanes if lane.batcher)
        computing = backlog * self._cost.prompt_s / max(1, len(lanes))
        return max(door.rate.seconds_for(door.size), computing)


class _Mean:
    """Over a window that forgets, of what is told once a second."""

    def __init__(self) -> None:
        self.value = 0.0

    def take(self, now: float) -> float:
        """This second's; the mean with it."""
        self.value = now + _KEEP * (self.value - now)
        return self.value
