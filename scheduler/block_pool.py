"""The KV blocks of one worker: which are free, held or cached.

    free ──allocate──▶ held ──release──▶ fenced ──settle──▶ cached (its digest is known) ──evict──▶ held
      ▲                  ▲                  │                  │
      └──────────────────┼──────────────────┘                  │
                         └────────────── acquire ◀─────────────┘

A block is held while its reference count is above zero, and on until the steps that may still touch it have
been answered (the fence). Everything is O(1) per block.

With a host tier, the cached blocks used longest ago are copied there ahead of need. A copied block stays
cached, and can be evicted without loss; it is evicted before any other.
"""

from array import array
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from prefix_cache.hashing import Digest
from prefix_cache.index import PrefixIndex
from prefix_cache.mirror import Remembered
from scheduler.lru import LruList


class Contents(NamedTuple):
    """That `block` holds `digest`, `depth` blocks into its chain, while its generation stays the same."""

    block: int
    digest: Digest
    generation: int
    depth: int


class BlockPool:
    """Allocates, shares and recycles block ids 0 .. num_blocks - 1."""

    def __init__(self, num_blocks: int, generations: Sequence[int] = ()) -> None:
        """`generations` says how often each block has been written already; all unwritten by default."""
        self.num_blocks = num_blocks
        self.generations = list(generations) or [0] * num_blocks
        self.index = PrefixIndex()
        self.evictions = 0  # blocks that lost a known prefix to others
        self.returned = 0  # times a block came back to `available` or `ready`
        self.registered = 0  # times one became known
        self._depths = array("I", bytes(4 * num_blocks))  # of blocks that the index knows
        self._references = [0] * num_blocks
        # Low ids first: a lightly used pool touches little memory.
        self._free = list(range(num_blocks - 1, -1, -1))
        self._cached = LruList(num_blocks)
        self._spare = LruList(num_blocks)  # cached as well, and copied
        self._copied: set[int] = set()  # being copied or copied, and not acquired since
        self._unconfirmed: deque[tuple[int, int, Digest]] | None = None  # where nobody asks
        self._releases = 0
        self._fences: deque[tuple[int, int, list[int]]] = deque()  # step, number of the release, blocks
        # The release that counts: a block may be acquired and released again before the first one's fence.
        self._fence_of: dict[int, int] = {}

    @property
    def free(self) -> int:
        """Blocks that hold nothing."""
        return len(self._free)

    @property
    def cached(self) -> int:
        """Blocks that hold a known prefix and that nobody uses: evictable."""
        return len(self._cached) + len(self._spare)

    @property
    def held(self) -> int:
        """Blocks in use, or fenced."""
        return self.num_blocks - self.free - self.cached

    @property
    def fenced(self) -> int:
        """Held blocks that nobody uses any more: available once steps in flight are answered."""
        return len(self._fence_of)

    @property
    def available(self) -> int:
        """How many blocks `allocate` can give now."""
        return self.free + self.cached

    @property
    def ready(self) -> int:
        """How many of those are free, or have a copy: `allocate` gives these first."""
        return self.free + len(self._spare)

    def idle_among(self, blocks: Iterable[int]) -> int:
        """How many of `blocks` are cached: acquiring them takes so many from `available`."""
        return sum(block in self._cached or block in self._spare for block in blocks)

    def spare_among(self, blocks: Iterable[int]) -> int:
        """How many of `blocks` are cached and copied: acquiring them takes so many from `ready`."""
        return sum(block in self._spare for block in blocks)

    def allocate(self, count: int) -> list[int]:
        """`count` blocks with unspecified contents, each held once. Needs `count <= available`."""
        if count > self.available:
            raise AssertionError(f"{count} blocks wanted, {self.available} available")
        blocks = [self._free.pop() if self._free else self._evict() for _ in range(count)]
        for block in blocks:
            self._references[block] = 1
            self.generations[block] += 1
        return blocks

    def acquire(self, blocks: Iterable[int]) -> None:
        """Holds blocks that `index` gave, once more each."""
        for block in blocks:
            if self._references[block] == 0 and self._fence_of.pop(block, None) is None:
                (self._spare if block in self._spare else self._cached).remove(block)
            self._copied.discard(block)  # it is among the newest from now on, copied or not
            self._references[block] += 1

    def oldest_uncopied(self) -> int | None:
        """The cached block used longest ago of those without a copy."""
        return self._cached.oldest if len(self._cached) else None

    def has_copy(self, block: int) -> None:
        """`block`, which is `oldest_uncopied`, can be evicted without loss."""
        self._cached.remove(block)
        self._copied.add(block)
        self._spare.append(block)

    def begin_copy(self, block: int) -> None:
        """`block`, which is `oldest_uncopied`, is held while it is being copied. It can be acquired."""
        self._cached.remove(block)
        self._copied.add(block)
        self._references[block] = 1

    def end_copy(self, blocks: Iterable[int], after_step: int) -> None:
        """These blocks, oldest first, have been copied. Those acquired meanwhile are as in `release`."""
        for block in blocks:
            if block not in self._copied:
                self.release([block], after_step)
            else:
                self._references[block] = 0
                self._spare.append(block)
                self.returned += 1

    def register(self, block: int, digest: Digest, depth: int, step: int) -> None:
        """A held block is full, and holds `digest` once `step` is done: steps after it may share it.

        `depth` blocks stand before it in its chain. Of two blocks that hold the same, the one that is in use
        longer is known: the other would be evicted before what follows in the chain.
        """
        twin = self.index.find(digest)
        if twin is not None and self._outlasts(block, twin):
            self._give_up(twin)
        if self.index.insert(digest, block):
            self.registered += 1
            self._depths[block] = depth
            if self._unconfirmed is not None:
                self._unconfirmed.append((step, block, digest))

    def follow(self) -> None:
        """From now on `confirmed` says what is registered. It is kept until it is asked for."""
        self._unconfirmed = deque()

    def confirmed(self, step: int) -> list[Contents]:
        """What has been registered and is in place for sure, now that `step` has been answered. Once each."""
        contents = []
        while self._unconfirmed and self._unconfirmed[0][0] <= step:
            _, block, digest = self._unconfirmed.popleft()
            if self.index.digest_of(block) == digest:
                contents.append(self._contents(block, digest))
        return contents

    def everything(self) -> list[Contents]:
        """What is registered, though it may not be in place until all steps sent are answered."""
        digests = ((block, self.index.digest_of(block)) for block in range(self.num_blocks))
        return [self._contents(block, digest) for block, digest in digests if digest]

    def restore(self, remembered: Mapping[int, Remembered]) -> int:
        """Makes free blocks cached ones where they still hold what is `remembered` of them, by block.

        With another generation a block was written since. Tails will be evicted before heads, the deepest
        first: when each was used last nobody remembers. Returns how many blocks were restored.
        """
        restored = [
            block
            for block in self._free
            if (known := remembered.get(block))
            and known.generation == self.generations[block]
            and self.index.insert(known.digest, block)
        ]
        for block in restored:
            self._depths[block] = remembered[block].depth
        gone = set(restored)
        self._free = [block for block in self._free if block not in gone]
        for block in sorted(restored, key=self._depths.__getitem__, reverse=True):
            self._cached.append(block)
        return len(restored)

    def release(self, blocks: Sequence[int], after_step: int) -> None:
        """Gives blocks back; they are reusable once `settle(after_step)` has been called.

        `blocks` come in the order of their sequence. The tail is settled first, so it is evicted first: a
        prefix without its head is worth nothing.
        """
        gone = []
        self._releases += 1
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block] == 0:
                gone.append(block)
                self._fence_of[block] = self._releases
        if gone:
            self._fences.append((after_step, self._releases, gone))

    def settle(self, step: int) -> None:
        """All steps up to `step` have been answered."""
        while self._fences and self._fences[0][0] <= step:
            _, release, blocks = self._fences.popleft()
            for block in blocks:
                if self._fence_of.get(block) != release:
                    continue  # acquired meanwhile, and perhaps released again
                del self._fence_of[block]
                self.returned += 1
                if self.index.has(block):
                    self._cached.append(block)
                else:
                    self._free.append(block)

    def check(self) -> None:
        """Raises AssertionError when the books do not balance. For tests, and when nothing runs."""
        if (
            self.free + self.held + self.cached != self.num_blocks
            or min(self.free, self.held, self.cached) < 0
        ):
            raise AssertionError(
                f"free {self.free} + held {self.held} + cached {self.cached} != {self.num_blocks}"
            )
        used = sum(count > 0 for count in self._references)
        if used + self.fenced != self.held:
            raise AssertionError(f"{used} blocks in use + {self.fenced} fenced != {self.held} held")

    def _outlasts(self, block: int, twin: int) -> bool:
        if self._references[twin] or self._references[block]:
            return not self._references[twin]
        return self._fence_of.get(twin, 0) < self._fence_of.get(block, 0)

    def _give_up(self, block: int) -> None:
        """Nobody uses `block`, and it is not to be found any more."""
        self.index.remove(block)
        self._copied.discard(block)
        if block not in self._fence_of:
            (self._spare if block in self._spare else self._cached).remove(block)
            self._free.append(block)

    def _contents(self, block: int, digest: Digest) -> Contents:
        return Contents(block, digest, self.generations[block], self._depths[block])

    def _evict(self) -> int:
        block = (self._spare if len(self._spare) else self._cached).pop_oldest()
        self._copied.discard(block)
        self.index.remove(block)
        self.evictions += 1
        return block
