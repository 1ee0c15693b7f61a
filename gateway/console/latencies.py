"""Percentiles over the last minute, whose cost does not grow with what is measured."""

import math
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass

_SLOT_S = 5.0
_SLOTS = 12  # a minute
_PER_DECADE = 24  # buckets: each is 10% wider than the one before it

Counts = Counter[tuple[str, int]]
"""How many fell into a bucket, by tenant and bucket."""


@dataclass(frozen=True, slots=True)
class Percentiles:
    """In milliseconds, within 5% of the truth; None where nothing was measured."""

    count: int
    p50: float | None
    p99: float | None


class Latencies:
    """Counts in buckets for each tenant, in slots of five seconds that are forgotten one by one."""

    def __init__(self) -> None:
        self._slots: deque[tuple[int, Counts]] = deque(maxlen=_SLOTS)

    def observe(self, tenant: str, seconds: float, now: float) -> None:
        """One was measured. `now` is in seconds and never falls."""
        slot = int(now / _SLOT_S)
        if not self._slots or self._slots[-1][0] != slot:
            self._slots.append((slot, Counter()))
        self._slots[-1][1][tenant, _bucket(seconds)] += 1

    def counts(self, now: float) -> Counts:
        """Those of the last minute, together."""
        first = int(now / _SLOT_S) - _SLOTS
        together: Counts = Counter()
        for slot, counts in self._slots:
            if slot > first:
                together.update(counts)
        return together


def percentiles(counts: Counts, tenant: str | None) -> Percentiles:
    """Of one tenant; of all where it is None."""
    buckets: Counter[int] = Counter()
    for (whose, bucket), count in counts.items():
        if tenant is None or whose == tenant:
            buckets[bucket] += count
    ordered = sorted(buckets.items())
    total = buckets.total()
    return Percentiles(total, _at(ordered, total * 0.5), _at(ordered, total * 0.99))


def _bucket(seconds: float) -> int:
    return math.floor(math.log10(max(seconds, 1e-6)) * _PER_DECADE)


def _at(ordered: Iterable[tuple[int, int]], rank: float) -> float | None:
    """The middle of the bucket in which that many are reached."""
    seen = 0
    for bucket, count in ordered:
        seen += count
        if seen >= rank:
            return float(10 ** ((bucket + 0.5) / _PER_DECADE) * 1e3)
    return None
