"""How many steps to keep in flight on a worker: enough that it never waits for the network.

The hop's tail is longer than a small model's step, so a number of steps is not enough: there must be some
milliseconds of work too, on top of what the way to the worker and back takes. More than that is not better:
what is in flight can no longer be changed.
"""

import math

WORK_IN_FLIGHT_US = 3_000
MOST_STEPS = 8
_WEIGHT = 0.1  # of the newest step in the running means


class Pacing:
    """Follows how long steps keep the worker busy, and how long the hop takes."""

    def __init__(self, least: int) -> None:
        """`least` steps are in flight whatever they take; 1 is synchronous, and stays so."""
        self._least = least
        self._busy_us = float(WORK_IN_FLIGHT_US)
        self._hop_us = 0.0

    def observe(self, busy_us: int, hop_us: float) -> None:
        """A step has kept the worker busy, and was on its way there and back, for so many microseconds."""
        self._busy_us += _WEIGHT * (max(busy_us, 1) - self._busy_us)
        self._hop_us += _WEIGHT * (max(hop_us, 0.0) - self._hop_us)

    @property
    def depth(self) -> int:
        """Steps to have in flight."""
        if self._least == 1:
            return 1
        wanted = (WORK_IN_FLIGHT_US + self._hop_us) / self._busy_us
        # One more than make up the time: the oldest may be about to end.
        return max(self._least, min(MOST_STEPS, math.ceil(wanted) + 1))
