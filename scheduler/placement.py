"""Which worker gets a request: the one where it waits for the least work.

    cost(worker) = uncached prompt tokens + prompt tokens queued there + ROW_COST * requests running there

in tokens of prefill. A request that runs shares every step with the newcomer until one of them ends; ROW_COST
is what that is worth in prompt tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

ROW_COST = 64


@dataclass(frozen=True, slots=True)
class Load:
    """What a request would find on a worker: tokens to compute, tokens ahead of it, requests beside it."""

    uncached: int
    queued: int
    running: int

    @property
    def cost(self) -> int:
        """In tokens of prefill."""
        return self.uncached + self.queued + ROW_COST * self.running


W = TypeVar("W")


def choose(loads: Sequence[tuple[W, Load]]) -> W:
    """The worker with the least cost, the first of equals. `loads` is not empty."""
    return min(loads, key=lambda pair: pair[1].cost)[0]
