"""The host blocks of one worker, the tier below the device's: which are free, in motion or cached.

    free ──take──▶ saving ──saved──▶ cached ──pin──▶ loading ──unpin──▶ cached
      cached ──take──▶ saving: the one used longest ago makes room

A block can be matched once it is saved. What is loaded stays here too, but as the first to make room: until
the device evicts it there are two copies, and then it is saved anew if its place was needed. So the two tiers
together hold nearly as many different blocks as they have.
"""

from collections.abc import Iterable, Sequence

from prefix_cache.hashing import Digest
from prefix_cache.index import PrefixIndex
from scheduler.lru import LruList


class HostPool:
    """Host block ids 0 .. num_blocks - 1, and what they hold. O(1) per block."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.evictions = 0
        self._index = PrefixIndex()
        self._free = list(range(num_blocks - 1, -1, -1))
        self._cached = LruList(num_blocks)
        self._saving: set[int] = set()
        self._loading: set[int] = set()

    @property
    def free(self) -> int:
        """Blocks that hold nothing."""
        return len(self._free)

    @property
    def saving(self) -> int:
        """Blocks that are being written."""
        return len(self._saving)

    @property
    def cached(self) -> int:
        """Blocks that hold a prefix."""
        return len(self._cached) + len(self._loading)

    def __contains__(self, digest: object) -> bool:
        """Whether `digest` is here, or on its way."""
        return digest in self._index

    def find(self, digest: Digest) -> int | None:
        """The block that holds `digest` and can be loaded, unless it is being loaded."""
        block = self._index.find(digest)
        return block if block is not None and block in self._cached else None

    def touch(self, digest: Digest) -> None:
        """`digest`, which is here, counts as the newest."""
        block = self._index.find(digest)
        if block is not None and block in self._cached:
            self._cached.remove(block)
            self._cached.append(block)

    def take(self, digest: Digest) -> int | None:
        """A block into which `digest` will be saved; None while every block is in motion."""
        if self._free:
            block = self._free.pop()
        elif len(self._cached):
            block = self._cached.pop_oldest()
            self._index.remove(block)
            self.evictions += 1
        else:
            return None
        self._index.insert(digest, block)
        self._saving.add(block)
        return block

    def saved(self, blocks: Iterable[int]) -> None:
        """These blocks, which `take` gave, hold their digests now."""
        for block in blocks:
            self._saving.remove(block)
            self._cached.append(block)

    def pin(self, blocks: Iterable[int]) -> None:
        """A load will read these blocks, which `find` gave: they keep what they hold."""
        for block in blocks:
            self._cached.remove(block)
            self._loading.add(block)

    def unpin(self, blocks: Sequence[int]) -> None:
        """The load of these blocks, in the order of their sequence, is done."""
        for block in blocks:
            self._loading.remove(block)
            self._cached.prepend(block)

    def check(self) -> None:
        """Raises AssertionError when the books do not balance."""
        parts = (self.free, len(self._cached), len(self._saving), len(self._loading))
        if sum(parts) != self.num_blocks or len(self._index) != self.num_blocks - self.free:
            raise AssertionError(f"free, cached, saving, loading {parts} of {self.num_blocks}")
