"""What a worker's blocks hold, told to the mirror as steps are answered, and again when Redis lost it."""

from collections.abc import Sequence

from prefix_cache.mirror import PrefixMirror, Remembered
from scheduler.block_pool import BlockPool, Contents

_AT_ONCE = 512  # blocks told again after one step: a fraction of a millisecond


class Remembering:
    """Writes one worker's blocks to the mirror, under `key`, for as long as its stream lives."""

    def __init__(self, mirror: PrefixMirror, key: str, pool: BlockPool) -> None:
        self._mirror = mirror
        self._key = key
        self._pool = pool
        pool.follow()
        self._again: list[Contents] = []
        self._again_after = 0

    async def restore(self) -> int:
        """Makes what the mirror knows of these blocks, and is still true, usable again; how many blocks."""
        return self._pool.restore(await self._mirror.load(self._key))

    def forget(self) -> None:
        """What the blocks hold is not to be relied on: nobody is to find it again."""
        self._mirror.forget(self._key)

    def answered(self, step: int, sent: int) -> None:
        """`step` has been answered, `sent` is the last one sent: what that put in place is told."""
        self._tell(self._pool.confirmed(step))
        if self._mirror.lost(self._key):
            # What is known now may still be on its way: it is in place once all steps sent are answered.
            self._again, self._again_after = self._pool.everything(), sent
        elif self._again and step >= self._again_after:
            pool = self._pool
            part, self._again = self._again[:_AT_ONCE], self._again[_AT_ONCE:]
            self._tell([known for known in part if pool.generations[known.block] == known.generation])

    def _tell(self, contents: Sequence[Contents]) -> None:
        for known in contents:
            self._mirror.note(self._key, known.block, Remembered(known.digest, known.generation, known.depth))
