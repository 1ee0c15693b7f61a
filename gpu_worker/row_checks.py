"""Whether a step is allowed in the state the rows are in: pure checks, before anything is changed."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from batchyard.errors import ProtocolError
from gpu_worker.rows import RowLimits, RowTable
from gpu_worker.step_diff import Entry, Moves, StepDiff

Ids = npt.NDArray[np.int32]


def check(rows: RowTable, diff: StepDiff) -> None:
    """Raises ProtocolError, which names the row and what is wrong, if `rows` must not take `diff`."""
    if diff.step != rows.last_step + 1:
        raise ProtocolError(f"step {diff.step} came where step {rows.last_step + 1} was due")
    try:
        _Draft(rows).check(diff)
    except ProtocolError as error:
        raise ProtocolError(f"step {diff.step}: {error}") from None


class _Draft:
    """What the rows would become: the diff is applied to copies of the counts."""

    def __init__(self, rows: RowTable) -> None:
        self._limits = rows.limits
        self._active = rows.active.copy()
        self._decoding = rows.decoding.copy()
        self._computed = rows.computed.copy()
        self._known = rows.known.copy()
        self._num_blocks = rows.num_blocks.copy()

    def check(self, diff: StepDiff) -> None:
        if len(diff.freed_rows):
            self._free(diff.freed_rows)
        for entry in diff.entries:
            self._enter(entry)
        if len(diff.grown_rows):
            self._grow(diff.grown_rows, diff.grown_blocks)
        if len(diff.chunk_rows):
            self._check_chunks(diff.chunk_rows, diff.chunk_lens)
        self._check_decodes()
        for moves in (diff.saves, diff.loads):
            _check_moves(moves, self._limits)
        num_tokens = int(np.count_nonzero(self._decoding)) + int(diff.chunk_lens.sum())
        if num_tokens > self._limits.max_batched_tokens:
            raise ProtocolError(f"{num_tokens} tokens, above the {self._limits.max_batched_tokens} of a step")

    def _free(self, rows: Ids) -> None:
        self._check_active(rows, "freed")
        if len(np.unique(rows)) != len(rows):
            raise ProtocolError("a row is freed twice")
        self._active[rows] = False
        self._decoding[rows] = False

    def _enter(self, entry: Entry) -> None:
        limits, row = self._limits, entry.row
        if not 0 <= row < limits.max_rows:
            raise ProtocolError(f"new row {row} is outside the {limits.max_rows} rows")
        if self._active[row]:
            raise ProtocolError(f"new row {row} is taken")
        if len(entry.tokens) > limits.max_model_len:
            raise ProtocolError(
                f"row {row} has {len(entry.tokens)} tokens, above max_model_len {limits.max_model_len}"
            )
        _check_blocks(entry.block_ids, limits)
        if len(entry.block_ids) > limits.max_blocks_per_row:
            raise ProtocolError(
                f"row {row} has {len(entry.block_ids)} blocks, above {limits.max_blocks_per_row}"
            )
        if entry.computed > len(entry.block_ids) * limits.block_size:
            raise ProtocolError(
                f"row {row} has {entry.computed} tokens computed in {len(entry.block_ids)} blocks"
            )
        self._active[row] = True
        self._computed[row] = entry.computed
        self._known[row] = len(entry.tokens)
        self._num_blocks[row] = len(entry.block_ids)

    def _grow(self, rows: Ids, blocks: Ids) -> None:
        self._check_active(rows, "grown")
        _check_blocks(blocks, self._limits)
        np.add.at(self._num_blocks, rows, 1)
        _refuse(
            rows,
            self._num_blocks[rows] > self._limits.max_blocks_per_row,
            lambda row: f"row {row} grows beyond {self._limits.max_blocks_per_row} blocks",
        )

    def _check_chunks(self, rows: Ids, lens: Ids) -> None:
        self._check_active(rows, "chunk")
        if len(np.unique(rows)) != len(rows):
            raise ProtocolError("a row has two chunks")
        _refuse(rows, self._decoding[rows], lambda row: f"row {row} decodes, so it takes no chunk")
        _refuse(rows, lens < 1, lambda row: f"row {row} has a chunk without tokens")
        ends = self._computed[rows] + lens
        _refuse(
            rows,
            ends > self._known[rows],
            lambda row: f"the chunk of row {row} goes past its {self._known[row]} known tokens",
        )
        self._check_room(rows, ends)

    def _check_decodes(self) -> None:
        rows = np.flatnonzero(self._decoding)
        known = self._known[rows]
        _refuse(
            rows,
            known > self._limits.max_model_len,
            lambda row: f"row {row} decodes beyond max_model_len {self._limits.max_model_len}",
        )
        self._check_room(rows, known)

    def _check_room(self, rows: npt.NDArray[np.integer], ends: npt.NDArray[np.int64]) -> None:
        short = ends > self._num_blocks[rows] * self._limits.block_size
        _refuse(
            rows, short, lambda row: f"row {row} has too few blocks ({self._num_blocks[row]}) for its tokens"
        )

    def _check_active(self, rows: Ids, what: str) -> None:
        _refuse(
            rows,
            (rows < 0) | (rows >= self._limits.max_rows),
            lambda row: f"{what} row {row} is outside the {self._limits.max_rows} rows",
        )
        _refuse(rows, ~self._active[rows], lambda row: f"{what} row {row} is unknown")


def _check_moves(moves: Moves, limits: RowLimits) -> None:
    _check_blocks(moves.blocks, limits)
    wrong = (moves.host_blocks < 0) | (moves.host_blocks >= limits.num_host_blocks)
    _refuse(
        moves.host_blocks,
        wrong,
        lambda block: f"host block {block} is outside the {limits.num_host_blocks} host blocks",
    )


def _check_blocks(blocks: Ids, limits: RowLimits) -> None:
    wrong = (blocks < 0) | (blocks >= limits.num_blocks)
    _refuse(blocks, wrong, lambda block: f"block {block} is outside the {limits.num_blocks} blocks")


def _refuse(
    values: npt.NDArray[np.integer], wrong: npt.NDArray[np.bool_], complaint: Callable[[int], str]
) -> None:
    """Raises ProtocolError with the complaint about the first of `values` that is `wrong`, if one is."""
    if wrong.any():
        raise ProtocolError(complaint(int(values[wrong][0])))
