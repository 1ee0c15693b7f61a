"""Which digest lives in which block of one worker. Exact, since who asks is who allocates."""

from bisect import bisect_left
from collections.abc import Container, Sequence
from typing import cast

from prefix_cache.hashing import Digest


class PrefixIndex:
    """A two-way map between digests and blocks. A block has at most one digest and a digest one block."""

    def __init__(self) -> None:
        self._block_of: dict[Digest, int] = {}
        # By block: blocks are numbered from zero, and an entry in a list is a third of one in a dictionary.
        self._digest_of: list[Digest | None] = []

    def __len__(self) -> int:
        return len(self._block_of)

    def __contains__(self, digest: object) -> bool:
        return digest in self._block_of

    def match(self, digests: Sequence[Digest]) -> list[int]:
        """The blocks of the longest known beginning of a chain."""
        known = self.bound(digests, len(digests))
        blocks = list(map(self._block_of.get, digests[:known]))
        if None in blocks:
            del blocks[blocks.index(None) :]
        return cast(list[int], blocks)

    def bound(
        self, digests: Sequence[Digest], count: int, others: Sequence[Container[Digest]] = (), guess: int = 0
    ) -> int:
        """At least as many blocks as `match` finds for the first `count` digests, and no more without holes.

        A chain without holes is known up to some block and unknown from there, so a binary search finds it:
        log n looks where `match` takes n, and two where `guess` is right. Tails are evicted before heads, so
        there are no holes but in chains that are in use (scheduler/sharing.py). Digests in one of `others`
        count as known.
        """
        known = self._block_of

        def unknown(digest: Digest) -> bool:
            return digest not in known and not any(digest in other for other in others)

        low, high = 0, count
        if guess < count and unknown(digests[guess]):
            high = guess
        if 0 < guess <= count:
            low, high = (0, guess - 1) if unknown(digests[guess - 1]) else (guess, high)
        return bisect_left(digests, True, low, high, key=unknown)

    def find(self, digest: Digest) -> int | None:
        """The block that holds `digest`."""
        return self._block_of.get(digest)

    def insert(self, digest: Digest, block: int) -> bool:
        """Notes that `block` holds `digest`. False, and no change, where either is known already.

        Two requests may compute the same block side by side; the second copy stays anonymous, so that block
        tables never change once sent.
        """
        if digest in self._block_of or self.has(block):
            return False
        if block >= len(self._digest_of):
            self._digest_of += [None] * (block + 1 - len(self._digest_of))
        self._block_of[digest] = block
        self._digest_of[block] = digest
        return True

    def digest_of(self, block: int) -> Digest | None:
        """What `block` holds, if that is known."""
        return self._digest_of[block] if block < len(self._digest_of) else None

    def has(self, block: int) -> bool:
        """Whether `block` holds a known digest."""
        return block < len(self._digest_of) and self._digest_of[block] is not None

    def remove(self, block: int) -> None:
        """Forgets what `block` holds. Raises KeyError when it holds nothing known."""
        digest = self.digest_of(block)
        if digest is None:
            raise KeyError(block)
        del self._block_of[digest]
        self._digest_of[block] = None
