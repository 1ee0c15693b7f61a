"""Which digest lives in which block of one worker. Exact, since who asks is who allocates."""

from collections.abc import Iterable

from prefix_cache.hashing import Digest


class PrefixIndex:
    """A two-way map between digests and blocks. A block has at most one digest and a digest one block."""

    def __init__(self) -> None:
        self._block_of: dict[Digest, int] = {}
        self._digest_of: dict[int, Digest] = {}

    def __len__(self) -> int:
        return len(self._block_of)

    def match(self, digests: Iterable[Digest]) -> list[int]:
        """The blocks of the longest known beginning of a chain."""
        blocks = []
        for digest in digests:
            block = self._block_of.get(digest)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def find(self, digest: Digest) -> int | None:
        """The block that holds `digest`."""
        return self._block_of.get(digest)

    def insert(self, digest: Digest, block: int) -> bool:
        """Notes that `block` holds `digest`. False, and no change, where either is known already.

        Two requests may compute the same block side by side; the second copy stays anonymous, so that block
        tables never change once sent.
        """
        if digest in self._block_of or block in self._digest_of:
            return False
        self._block_of[digest] = block
        self._digest_of[block] = digest
        return True

    def digest_of(self, block: int) -> Digest | None:
        """What `block` holds, if that is known."""
        return self._digest_of.get(block)

    def has(self, block: int) -> bool:
        """Whether `block` holds a known digest."""
        return block in self._digest_of

    def remove(self, block: int) -> None:
        """Forgets what `block` holds. Raises KeyError when it holds nothing known."""
        del self._block_of[self._digest_of.pop(block)]
