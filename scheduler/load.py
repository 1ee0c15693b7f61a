"""What a request would find on a worker."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Load:
    """All in tokens but `rows`. What they are worth is placement's."""

    uncached: int  # of the request, to be computed
    loaded: int  # of the request, to be brought from host memory
    loading: float  # what bringing them costs: as many tokens could be computed meanwhile
    queued: int  # prompt tokens to be computed before
    rows: int  # requests that run or wait there
    context: int  # in blocks in use
    free: int  # in blocks that hold nothing
    available: int  # in blocks that can be given out, those that hold a cached prefix included

    @property
    def evicted(self) -> int:
        """Cached tokens that the request would push out."""
        return max(0, min(self.uncached + self.loaded, self.available) - self.free)

    @property
    def short(self) -> int:
        """Tokens of the request that have no block yet."""
        return max(0, self.uncached + self.loaded - self.available)
