"""How fast the queue empties, measured: Retry-After and the chance to meet a deadline come from it."""

import math
from collections.abc import Callable
from typing import NamedTuple

_WINDOW = 10.0  # seconds of waiting over which the rate is a mean
_ENOUGH = 0.5  # seconds of waiting from which on there is a rate


class Size(NamedTuple):
    """An amount of requests, or so many a second; tokens are of prompts, and of what was answered before."""

    requests: float = 0.0
    tokens: float = 0.0

    def plus(self, other: "Size") -> "Size":
        """Both together."""
        return Size(self.requests + other.requests, self.tokens + other.tokens)

    def minus(self, other: "Size") -> "Size":
        """What is left without `other`."""
        return Size(self.requests - other.requests, self.tokens - other.tokens)

    def times(self, factor: float) -> "Size":
        """So many of it."""
        return Size(self.requests * factor, self.tokens * factor)

    def within(self, most: "Size") -> bool:
        """Whether it is no more than `most` in either respect."""
        return self.requests <= most.requests and self.tokens <= most.tokens


class DrainRate:
    """Requests and tokens that begin to run per second in which somebody waits: a mean that forgets."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since: float | None = None  # somebody has waited since then, so far not counted
        self._drained = Size()
        self._seconds = 0.0

    def waits(self) -> None:
        """Somebody waits now, whether or not somebody did before."""
        self._count()
        self._since = self._clock()

    def started(self, size: Size) -> None:
        """So much began to run."""
        self._count()
        self._drained = self._drained.plus(size)

    def empty(self) -> None:
        """Nobody waits any more."""
        self._count()
        self._since = None

    def seconds_for(self, size: Size) -> float:
        """How long it takes until so much has begun to run, as far as that is known; else 0."""
        self._count()
        if self._seconds < _ENOUGH or not self._drained.requests:
            return 0.0
        longest = max(size.requests / self._drained.requests, size.tokens / self._drained.tokens)
        return max(0.0, longest * self._seconds)

    def _count(self) -> None:
        if self._since is None:
            return
        now = self._clock()
        passed = now - self._since
        keep = math.exp(-passed / _WINDOW)
        self._drained = self._drained.times(keep)
        self._seconds = self._seconds * keep + passed
        self._since = now
