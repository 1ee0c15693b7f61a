"""What one step feeds the model: token ids gathered on the device, and the metadata attention needs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch

from gpu_worker.kernels.metadata import AttentionMetadata, ChunkKeys
from gpu_worker.rows import RowTable, StepPlan
from gpu_worker.staging import HostArray

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True, slots=True)
class StepInputs(Generic[A]):
    """One step's index arrays, on the host or on the device; T tokens.

    token_places [T] int64: where each token's id stands in the flattened token table. The next five are those
    of AttentionMetadata, chunk_blocks and chunk_starts those of ChunkKeys, None where no sequence prefills.
    Block tables are large, and not everybody who is fed needs them from here: see `gathered_tables`.
    """

    token_places: A
    query_start: A
    seq_lens: A
    positions: A
    slots: A
    counts: A
    chunk_blocks: A | None
    chunk_starts: A | None
    num_decodes: int
    num_chunks: int
    max_seq_len: int

    def map(self, move: Callable[[A], B]) -> "StepInputs[B]":
        """The same with every array moved."""
        return StepInputs(
            move(self.token_places),
            move(self.query_start),
            move(self.seq_lens),
            move(self.positions),
            move(self.slots),
            move(self.counts),
            None if self.chunk_blocks is None else move(self.chunk_blocks),
            None if self.chunk_starts is None else move(self.chunk_starts),
            self.num_decodes,
            self.num_chunks,
            self.max_seq_len,
        )


def build_inputs(rows: RowTable, plan: StepPlan) -> StepInputs[HostArray]:
    """The arrays for `plan`, which has at least one sequence, before `rows.advance(plan)`."""
    block_size = rows.limits.block_size
    stride = rows.tokens.shape[1]
    query_start = np.zeros(len(plan.rows) + 1, np.int32)
    np.cumsum(plan.query_lens, out=query_start[1:])
    # Repeated for each token of its sequence: the row, and how far positions are ahead of places in the step.
    token_rows = np.repeat(plan.rows, plan.query_lens)
    ahead = np.repeat(plan.starts - query_start[:-1], plan.query_lens)
    positions = ahead + np.arange(len(ahead))
    blocks = rows.block_tables[token_rows, positions // block_size].astype(np.int64)
    ends = plan.ends
    chunk_blocks, chunk_starts = _chunk_keys(rows, plan)
    return StepInputs(
        token_places=token_rows * stride + positions,
        query_start=query_start,
        seq_lens=ends.astype(np.int32),
        positions=positions.astype(np.int32),
        slots=(blocks * block_size + positions % block_size).astype(np.int32),
        counts=np.array(
            (plan.num_decodes, len(plan.rows), 0 if chunk_blocks is None else len(chunk_blocks)), np.int32
        ),
        chunk_blocks=chunk_blocks,
        chunk_starts=chunk_starts,
        num_decodes=plan.num_decodes,
        num_chunks=len(plan.rows) - plan.num_decodes,
        max_seq_len=int(ends.max()),
    )


def gathered_tables(rows: RowTable, plan: StepPlan) -> HostArray:
    """The block tables of the step's sequences, as wide as the longest needs: [num_seqs, blocks] int32."""
    return rows.block_tables[plan.rows, : -(-int(plan.ends.max()) // rows.limits.block_size)]


def _chunk_keys(rows: RowTable, plan: StepPlan) -> tuple[HostArray, HostArray] | tuple[None, None]:
    """The fields of ChunkKeys."""
    chunks = plan.rows[plan.num_decodes :]
    if not len(chunks):
        return None, None
    block_size = rows.limits.block_size
    counts = -(-plan.ends[plan.num_decodes :] // block_size)
    blocks = [rows.block_tables[row, :count] for row, count in zip(chunks, counts.tolist(), strict=True)]
    starts = np.zeros(len(chunks), np.int32)
    np.cumsum(counts[:-1] * block_size, out=starts[1:])
    return np.concatenate(blocks), starts


def sampling_tokens(plan: StepPlan) -> HostArray | None:
    """Which tokens' hidden states give the logits that `plan` samples from: [n] int64; None for all."""
    if int(np.count_nonzero(plan.samples)) == plan.num_tokens:
        return None
    return np.cumsum(plan.query_lens)[plan.samples] - 1


def sampled_places(rows: RowTable, plan: StepPlan) -> HostArray:
    """Where the ids that `plan` samples go in the flattened token table: [n] int64."""
    sampled = plan.rows[plan.samples]
    return sampled * rows.tokens.shape[1] + rows.known[sampled]


def attention_metadata(inputs: StepInputs[torch.Tensor], block_tables: torch.Tensor) -> AttentionMetadata:
    """What the attention calls of the step are given."""
    chunk_keys = None
    if inputs.chunk_blocks is not None and inputs.chunk_starts is not None:
        chunk_keys = ChunkKeys(inputs.chunk_blocks, inputs.chunk_starts)
    return AttentionMetadata(
        query_start=inputs.query_start,
        seq_lens=inputs.seq_lens,
        block_tables=block_tables,
        positions=inputs.positions,
        slots=inputs.slots,
        counts=inputs.counts,
        num_decodes=inputs.num_decodes,
        num_chunks=inputs.num_chunks,
        max_seq_len=inputs.max_seq_len,
        chunk_keys=chunk_keys,
    )
