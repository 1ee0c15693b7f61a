"""The rows of a worker: what it knows of each request while that runs.

Token counts are known on the host without waiting for the device, so they live in NumPy arrays; token ids are
sampled on the device and stay there.

    computed   tokens whose keys and values are in the cache once every step begun so far is done
    known      tokens in the token table once every step begun so far is done, sampled ones included
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from gpu_worker.sampling.params import SamplingTable
from gpu_worker.step_diff import Entry, StepDiff

Ints = npt.NDArray[np.int64]


class RowLimits(NamedTuple):
    """What a worker can hold: rows, tokens in one row, tokens in one step, blocks, and tokens in a block.

    num_host_blocks: of the host tier.
    """

    max_rows: int
    max_model_len: int
    max_batched_tokens: int
    num_blocks: int
    block_size: int
    num_host_blocks: int = 0

    @property
    def max_blocks_per_row(self) -> int:
        return -(-self.max_model_len // self.block_size)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The sequences of one step, those that decode first; all arrays [num_seqs].

    rows, query_lens (new tokens), starts (tokens computed before) int64; samples bool: the sequence reaches
    its last known token, and the next one is sampled.
    """

    rows: Ints
    query_lens: Ints
    starts: Ints
    samples: npt.NDArray[np.bool_]
    num_decodes: int

    @property
    def ends(self) -> Ints:
        """Tokens computed once the step is done."""
        return self.starts + self.query_lens

    @property
    def num_tokens(self) -> int:
        return int(self.query_lens.sum())


class GrownBlocks(NamedTuple):
    """Blocks that rows got appended: where in the flattened block tables [n] int64, and which [n] int32."""

    places: Ints
    blocks: npt.NDArray[np.int32]


class RowTable:
    """State by row. Nothing here checks anything: `row_checks.check` does, before `apply`."""

    def __init__(self, limits: RowLimits, vocab_size: int, device: torch.device) -> None:
        self.limits = limits
        self.vocab_size = vocab_size
        self.sampling = SamplingTable(limits.max_rows)
        self.active = np.zeros(limits.max_rows, np.bool_)
        self.decoding = np.zeros(limits.max_rows, np.bool_)
        self.computed = np.zeros(limits.max_rows, np.int64)
        self.known = np.zeros(limits.max_rows, np.int64)
        self.prompt_len = np.zeros(limits.max_rows, np.int64)
        self.num_blocks = np.zeros(limits.max_rows, np.int64)
        self.block_tables = np.zeros((limits.max_rows, limits.max_blocks_per_row), np.int32)
        self.last_step = 0
        # How often each block was given to a row to be written, in the worker's whole life.
        self.block_generations = np.zeros(limits.num_blocks, np.uint32)
        # One row more than there are requests, for padding, and one token more than a row computes: the last
        # one it samples.
        self.tokens = torch.zeros(
            limits.max_rows + 1, limits.max_model_len + 1, dtype=torch.int32, device=device
        )

    def reset(self) -> None:
        """Frees all rows and begins to count steps anew."""
        self.active[:] = False
        self.decoding[:] = False
        self.num_blocks[:] = 0
        self.last_step = 0

    @property
    def num_active(self) -> int:
        """Rows in use."""
        return int(np.count_nonzero(self.active))

    @property
    def num_held_blocks(self) -> int:
        """Entries in the block tables of rows in use; a block that rows share counts for each."""
        return int(self.num_blocks.sum())

    def apply(self, diff: StepDiff) -> GrownBlocks | None:
        """The changes before a step. What belongs on the device, the caller puts there: the token ids of new
        rows, and where it keeps block tables there, those and the blocks returned.
        """
        self.last_step = diff.step
        self.active[diff.freed_rows] = False
        self.decoding[diff.freed_rows] = False
        self.num_blocks[diff.freed_rows] = 0
        for entry in diff.entries:
            self._enter(entry)
        np.add.at(self.block_generations, diff.loads.blocks, 1)
        return self._grow(diff.grown_rows, diff.grown_blocks) if len(diff.grown_rows) else None

    def _enter(self, entry: Entry) -> None:
        row = entry.row
        self.active[row] = True
        self.computed[row] = entry.computed
        self.known[row] = len(entry.tokens)
        self.prompt_len[row] = entry.prompt_len
        self.num_blocks[row] = len(entry.block_ids)
        self.block_tables[row, : len(entry.block_ids)] = entry.block_ids
        self.sampling.set(row, entry.sampling)
        written = entry.block_ids[entry.computed // self.limits.block_size :]
        np.add.at(self.block_generations, written, 1)

    def _grow(self, rows: npt.NDArray[np.int32], blocks: npt.NDArray[np.int32]) -> GrownBlocks:
        order = np.argsort(rows, kind="stable")
        in_order = rows[order]
        # A row may grow by several blocks: the first of a run of equal rows goes right behind those it has.
        nth = np.arange(len(rows)) - np.searchsorted(in_order, in_order)
        grown = GrownBlocks(
            in_order.astype(np.int64) * self.block_tables.shape[1] + self.num_blocks[in_order] + nth,
            blocks[order],
        )
        self.block_tables.reshape(-1)[grown.places] = grown.blocks
        np.add.at(self.num_blocks, rows, 1)
        np.add.at(self.block_generations, blocks, 1)
        return grown

    def plan(self, diff: StepDiff) -> StepPlan:
        """The step that follows `apply(diff)`: every decoding row and the chunks asked for."""
        decoding = np.flatnonzero(self.decoding)
        rows: Ints = np.concatenate((decoding, diff.chunk_rows), dtype=np.int64)
        query_lens: Ints = np.concatenate((np.ones_like(decoding), diff.chunk_lens), dtype=np.int64)
        starts = self.computed[rows]
        return StepPlan(
            rows=rows,
            query_lens=query_lens,
            starts=starts,
            samples=starts + query_lens == self.known[rows],
            num_decodes=len(decoding),
        )

    def advance(self, plan: StepPlan) -> None:
        """The step has begun: what it computes and samples counts as there."""
        self.computed[plan.rows] = plan.ends
        sampled = plan.rows[plan.samples]
        self.known[sampled] += 1
        self.decoding[sampled] = True
