"""Tells the prefix index of the blocks that rows have filled.

Two rows may fill a block with the same tokens, side by side, or because one token of a prompt at least must
be computed. The index knows one of the two blocks; the other is anonymous. A row that goes on behind an
anonymous block makes known what follows it. Were the known twin evicted before that, since its own row ended
long ago, there would be a hole in the chain, and what is behind it worth nothing. So a row that leaves offers
its anonymous blocks again: each becomes known if its twin is gone or out of use. If the twin is in use, it
will be released later than this row's blocks, and so evicted later.
"""

from collections.abc import Sequence

import numpy as np

from scheduler.block_pool import BlockPool
from scheduler.request import Request
from scheduler.rows import Rows


class Sharing:
    """Registers full blocks, once each and in order."""

    def __init__(self, rows: Rows, pool: BlockPool, *, caching: bool) -> None:
        self._rows = rows
        self._pool = pool
        self._caching = caching
        self._anonymous: dict[int, list[int]] = {}  # positions, by row

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
                if not self._register(row, request, position, step):
                    self._anonymous.setdefault(row, []).append(position)
            rows.hashed[row] = end

    def leave(self, row: int, step: int) -> None:
        """The row will release its blocks after `step`."""
        request = self._rows.requests[row]
        for position in self._anonymous.get(row, ()):
            if request is not None:
                self._register(row, request, position, step)

    def vacate(self, row: int) -> None:
        """The row is another's from now on."""
        self._anonymous.pop(row, None)

    def _register(self, row: int, request: Request, position: int, step: int) -> bool:
        """Whether the index knows this very block."""
        block = int(self._rows.block_table[row, position])
        digest = request.digests[position]
        self._pool.register(block, digest, position, step)
        return self._pool.index.find(digest) == block
