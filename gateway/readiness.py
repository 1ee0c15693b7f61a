"""Whether requests could be answered, and why not."""

import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from batchyard.errors import SchedulerLost
from protos.scheduling_pb2 import Description

STALLED_S = 5.0  # since the last step of a worker that owes an answer
_SECONDS_KEPT = 120

Describe = Callable[[], Awaitable[Description]]
"""Asks for the scheduler's state now; raises SchedulerLost."""


def why_not_ready(description: Description) -> str | None:
    """Why no request could be answered now; None when one could."""
    if description.ready:
        return None
    takers = [worker for worker in description.workers if worker.connected and not worker.draining]
    if not takers:
        drained = ", ".join(worker.worker_id for worker in description.workers if worker.draining)
        told = f" Drained: {drained}." if drained else ""
        return f"No worker is connected to the scheduler.{told}"
    if description.warming:
        return f"Warming up: {description.warming} common prompts are still to be prefilled."
    stalled = [worker for worker in takers if worker.seconds_since_step > STALLED_S]
    if not stalled:
        return "The scheduler is not ready."
    waits = ", ".join(f"{w.worker_id} for {w.seconds_since_step:.0f} s" for w in stalled)
    return f"No worker answers its steps: {waits}."


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen: the state, or None where no scheduler told it, and why no request could be answered."""

    description: Description | None
    reason: str | None
    at: float  # seconds, by time.monotonic


@dataclass(frozen=True, slots=True)
class Sample:
    """Of one second; over all workers."""

    tokens_per_second: float
    running: int
    waiting: int


class Watch:
    """Looks at the scheduler for all who want to know, however many they are."""

    def __init__(self, describe: Describe) -> None:
        self.last = Look(None, "The scheduler has not been asked yet.", time.monotonic())
        self.history: deque[Sample | None] = deque(maxlen=_SECONDS_KEPT)  # None: nothing was seen
        self._describe = describe

    async def look(self) -> Look:
        """Looks now; called once a second."""
        try:
            description = await self._describe()
        except SchedulerLost as error:
            self.last = Look(None, str(error), time.monotonic())
            self.history.append(None)
        else:
            self.last = Look(description, why_not_ready(description), time.monotonic())
            self.history.append(_sample(description))
        return self.last


def _sample(description: Description) -> Sample:
    rate = sum(worker.tokens_per_second for worker in description.workers)
    return Sample(round(rate, 1), description.running, description.waiting)
