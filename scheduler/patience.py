"""How long to wait for an answer before a worker counts as lost: as long as its answers take, and some more.

    deadline = max(FLOOR, MULTIPLE * what such a step may take) * doubt, at most the limit that was set

FLOOR is what a worker on a busy machine may stand still for without anything being wrong: a core that others
want as well, a page that comes from disk. Most steps take less than FLOOR / MULTIPLE, 60 ms, so it is what
counts for them. MULTIPLE is large because steps of a size differ: the same chunk takes some times longer at
the end of a long context than at its beginning, and longer again where its prompt is scored.

What a step may take is the longest that one of its size took lately, sizes counted by powers of two. A size
that was never seen is expected to take as much longer than the next smaller one as it is larger; attention
grows faster than that, other things do not grow at all, and MULTIPLE is on top. While no size was seen, the
limit alone holds: nobody knows what the first steps of a process load and compile. (A process that stands
still then is noticed by gRPC, whose pings it does not answer either.)

A false alarm costs a prefill, mostly from the cache, but it must not come again and again: each makes the
deadline DOUBT times longer, until FORGIVEN answers have come. An alarm was not false if the whole process
was silent, also to a question that takes no time.

Only time in which we were awake counts. A scheduler that was stopped itself, or had no core, must not accuse
a worker whose answer it has not come to read.
"""

from typing import Generic, TypeVar

FLOOR = 1.0  # seconds
MULTIPLE = 16.0
DOUBT = 4.0
FORGIVEN = 200  # answers
LOOK_EVERY = 0.1  # seconds
_FADES = 0.02  # of the longest, with each answer that took less

T = TypeVar("T")


class Patience:
    """With one worker's answers. A size is a number of tokens, or of blocks."""

    def __init__(self, limit: float) -> None:
        """`limit`: seconds, whatever has been observed."""
        self._limit = limit
        self._longest: dict[int, float] = {}  # seconds, by the size's number of bits
        self._doubt = 1.0
        self._answers = 0

    def observe(self, size: int, seconds: float) -> None:
        """An answer to something of this size took so long."""
        bits = size.bit_length()
        longest = self._longest.get(bits, 0.0)
        self._longest[bits] = max(seconds, longest + _FADES * (seconds - longest))
        self._answers += 1
        if self._answers == FORGIVEN:
            self._answers = 0
            self._doubt = max(1.0, self._doubt / DOUBT)

    def alarmed(self) -> None:
        """A deadline has passed. It may have been a false alarm."""
        self._doubt *= DOUBT
        self._answers = 0

    def justified(self) -> None:
        """The last alarm was not false."""
        self._doubt = max(1.0, self._doubt / DOUBT)

    def deadline(self, size: int) -> float:
        """Seconds to wait for the answer to something of this size."""
        if not self._longest:
            return self._limit
        return min(self._limit, max(FLOOR, MULTIPLE * self._expected(size)) * self._doubt)

    def _expected(self, size: int) -> float:
        bits = size.bit_length()
        smaller = max((seen for seen in self._longest if seen <= bits), default=None)
        if smaller is None:
            return self._longest[min(self._longest)]
        return self._longest[smaller] * (1 << (bits - smaller))


class Stopwatch(Generic[T]):
    """How long one thing has been waited for, in time in which we were awake."""

    def __init__(self) -> None:
        self._thing: T | None = None
        self._waited = 0.0
        self._looked_at = 0.0

    def look(self, thing: T | None, now: float) -> float:
        """Seconds that `thing` has been waited for; from now on if it is another than at the last look.

        `now` is in seconds. To be called every LOOK_EVERY; what looks are late by does not count.
        """
        passed = min(now - self._looked_at, 2 * LOOK_EVERY)
        self._looked_at = now
        if thing is not self._thing:
            self._thing, self._waited = thing, 0.0
        elif thing is not None:
            self._waited += passed
        return self._waited
