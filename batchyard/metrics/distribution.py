"""A histogram that costs its observer half a microsecond: no lock and no labels, read when somebody asks."""

import itertools
from bisect import bisect_left
from collections.abc import Sequence

from prometheus_client.core import HistogramMetricFamily


class Distribution:
    """Counts by bucket. One thread observes; any may read, and may miss what is observed meanwhile."""

    def __init__(self, bounds: Sequence[float]) -> None:
        """`bounds` are the upper ones, inclusive and ascending; above the last there is one bucket more."""
        self._bounds = tuple(bounds)
        self._names = (*(str(float(bound)) for bound in bounds), "+Inf")
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    @property
    def count(self) -> int:
        """How many were observed."""
        return sum(self._counts)

    @property
    def sum(self) -> float:
        """What they add up to."""
        return self._sum

    def observe(self, value: float) -> None:
        """Counts one more."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def report(self, family: HistogramMetricFamily, labels: Sequence[str] = ()) -> None:
        """Adds what was counted to `family`, as Prometheus wants it: each bucket with those below it."""
        reached = itertools.accumulate(self._counts)
        family.add_metric(labels, list(zip(self._names, reached, strict=True)), self._sum)
