"""Looks whether a worker still answers: its steps, and its moves between the tiers of its cache."""

import asyncio
from collections.abc import Callable, Sequence

from protos.step_pb2 import Moved
from scheduler.batcher import Step
from scheduler.patience import LOOK_EVERY, Patience, Stopwatch
from scheduler.tiers import Tiers

MOVES_LIMIT = 10.0  # seconds: of one step there are a few gigabytes at most
_SILENT = 0.5  # seconds without a sign of life, after which an alarm was not false


class Watch:
    """Over one worker, on whichever stream. What it learns of a process holds for that process."""

    def __init__(self, step_limit: float) -> None:
        """`step_limit`: seconds after which a step is overdue in any case."""
        self._limits = step_limit, min(step_limit, MOVES_LIMIT)
        self._epoch: int | None = None
        self._since = 0.0  # what is in flight can have been worked on since then
        self._alarm: tuple[Patience, float] | None = None  # the last one, until the worker is heard of again
        self._forget()

    def heard(self, now: float) -> None:
        """The worker's process has answered a question that takes it no time."""
        if self._alarm:
            patience, at = self._alarm
            if now - at > _SILENT:
                patience.justified()
        self._alarm = None

    def connected(self, epoch: int, now: float) -> None:
        """A stream has been opened to the process of this epoch. `now` is in seconds, by one clock."""
        if epoch != self._epoch:
            self._forget()
        self._epoch = epoch
        self._since = now
        self._step, self._save, self._load = Stopwatch[object](), Stopwatch[object](), Stopwatch[object]()

    def sent(self, now: float) -> None:
        """A step is sent, and no other is in flight."""
        self._since = now

    def answered(self, step: Step, now: float) -> None:
        """`step`, the oldest one in flight, has been answered; the worker is free for the next."""
        self._steps.observe(step.num_tokens, now - self._since)
        self._since = now

    def moved(self, tiers: Tiers, news: Moved) -> None:
        """What the news says is done; `tiers` has not heard of it yet."""
        save, load = tiers.in_motion_first
        if news.saved and save:
            self._moves.observe(len(save.blocks), news.save_us / 1e6)
        if news.loaded and load:
            self._moves.observe(len(load.arriving), news.load_us / 1e6)

    def owed(self, in_flight: Sequence[Step], now: float) -> float:
        """Seconds for which the worker has owed the answer to a step; 0 when it owes none."""
        return now - self._since if in_flight else 0.0

    async def until_overdue(self, in_flight: Sequence[Step], tiers: Tiers, clock: Callable[[], float]) -> str:
        """Looks now and then; returns what is overdue once something is. `clock` gives seconds."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            if what := self.overdue(in_flight, tiers, clock()):
                return what

    def overdue(self, in_flight: Sequence[Step], tiers: Tiers, now: float) -> str | None:
        """What should have been answered by now, if something should; then it may take longer from now on."""
        step = in_flight[0] if in_flight else None
        save, load = tiers.in_motion_first
        if self._step.look(step, now) > self._steps.deadline(step.num_tokens if step else 0):
            return self._alarmed(self._steps, now, "step")
        if self._save.look(save, now) > self._moves.deadline(len(save.blocks) if save else 0):
            return self._alarmed(self._moves, now, "save")
        if self._load.look(load, now) > self._moves.deadline(len(load.arriving) if load else 0):
            return self._alarmed(self._moves, now, "load")
        return None

    def _alarmed(self, patience: Patience, now: float, what: str) -> str:
        patience.alarmed()
        self._alarm = patience, now
        return what

    def _forget(self) -> None:
        steps, moves = self._limits
        self._steps, self._moves = Patience(steps), Patience(moves)
