"""Tells the prefix index of the blocks that rows have filled."""

from collections.abc import Sequence

import numpy as np

from scheduler.block_pool import BlockPool
from scheduler.rows import Rows


class Sharing:
    """Registers full blocks, once each and in order."""

    def __init__(self, rows: Rows, pool: BlockPool, *, caching: bool) -> None:
        self._rows = rows
        self._pool = pool
        self._caching = caching

    def register_full(self, candidates: Sequence[int], step: int) -> None:
        """Makes the blocks of these rows that are full after `step` known to the prefix index."""
        if not self._caching or not len(candidates):
            return
        rows = self._rows
        full = np.minimum(rows.length[candidates], rows.computed[candidates]) // rows.block_size
        for row, end in zip(candidates, full.tolist(), strict=True):
            start = int(rows.hashed[row])
            if end <= start:
                continue
            request = rows.requests[row]
            if request is None:
                raise AssertionError(f"row {row} is vacant")
            request.hash_blocks(rows.tokens[row, : end * rows.block_size], rows.block_size)
            for position in range(start, end):
                self._pool.register(int(rows.block_table[row, position]), request.digests[position], step)
            rows.hashed[row] = end
