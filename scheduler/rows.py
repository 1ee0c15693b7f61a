"""The rows of one worker, as arrays: a steady step touches no object per request.

A row's token counts run ahead of one another, all known without waiting for the worker:

    computed   tokens whose keys and values are in the cache once every step sent so far is done
    known      tokens of the sequence once every step sent so far is done (the sampled ones included)
    length     tokens whose ids have come back: `length <= known`, and less exactly while steps are in flight
"""

import numpy as np

from scheduler.request import Request, Tokens

_STOP_WIDTH = 8


class Rows:
    """State of `max_rows` rows; arrays are indexed by row."""

    def __init__(self, max_rows: int, max_model_len: int, block_size: int) -> None:
        self.max_rows = max_rows
        self.block_size = block_size
        max_blocks = -(-max_model_len // block_size)
        # Empty, not zeros: pages of rows never used are never touched.
        self.tokens = np.empty((max_rows, max_model_len), np.int32)
        self.block_table = np.empty((max_rows, max_blocks), np.int32)
        self.num_blocks = np.zeros(max_rows, np.int32)
        self.computed = np.zeros(max_rows, np.int32)
        self.known = np.zeros(max_rows, np.int32)
        self.length = np.zeros(max_rows, np.int32)
        self.limit = np.zeros(max_rows, np.int32)
        self.prompt = np.zeros(max_rows, np.int32)  # tokens of the answer come after these
        self.shared = np.zeros(max_rows, np.int32)  # leading blocks that others had filled
        self.priority = np.zeros(max_rows, np.int64)
        self.hashed = np.zeros(max_rows, np.int32)  # leading blocks whose digests are registered
        self.decoding = np.zeros(max_rows, np.bool_)  # takes part in the next step of its own accord
        self.accepting = np.zeros(max_rows, np.bool_)  # what it samples belongs to its request
        self.ids = np.zeros(max_rows, np.uint64)
        self.sessions = np.zeros(max_rows, np.int64)
        self.stops = np.full((max_rows, _STOP_WIDTH), -1, np.int32)
        self.requests: list[Request | None] = [None] * max_rows
        self._vacant = list(range(max_rows - 1, -1, -1))

    @property
    def vacant(self) -> int:
        """Rows that can be taken."""
        return len(self._vacant)

    @property
    def taken(self) -> int:
        """Rows in use, those that wait for a fence included."""
        return self.max_rows - self.vacant

    def take(self, request: Request, blocks: list[int], computed: int) -> int:
        """Puts `request` into a vacant row with its blocks, of which `computed` tokens are filled."""
        row = self._vacant.pop()
        length = len(request.tokens)
        self.tokens[row, :length] = request.tokens
        self.block_table[row, : len(blocks)] = blocks
        self.num_blocks[row] = len(blocks)
        self.computed[row] = computed
        self.known[row] = self.length[row] = length
        self.limit[row] = request.limit
        self.prompt[row] = request.prompt_len
        self.priority[row] = request.priority
        self.shared[row] = self.hashed[row] = computed // self.block_size
        self.accepting[row] = True
        self.ids[row] = request.id
        self.sessions[row] = request.session.number
        self._set_stops(row, request.stop_ids)
        self.requests[row] = request
        return row

    def vacate(self, row: int) -> None:
        """The row's fence has passed: it can be taken again."""
        self.requests[row] = None
        self.accepting[row] = False
        self._vacant.append(row)

    def blocks_of(self, row: int) -> list[int]:
        """The row's blocks in order."""
        blocks: list[int] = self.block_table[row, : self.num_blocks[row]].tolist()
        return blocks

    def tokens_of(self, row: int) -> Tokens:
        """The tokens that have come back, a copy [length] int32."""
        return self.tokens[row, : self.length[row]].copy()

    def grow(self, row: int, block: int) -> None:
        """Appends a block."""
        self.block_table[row, self.num_blocks[row]] = block
        self.num_blocks[row] += 1

    def _set_stops(self, row: int, stop_ids: frozenset[int]) -> None:
        missing = len(stop_ids) - self.stops.shape[1]
        if missing > 0:
            self.stops = np.pad(self.stops, ((0, 0), (0, missing)), constant_values=-1)
        self.stops[row] = -1
        self.stops[row, : len(stop_ids)] = sorted(stop_ids)
