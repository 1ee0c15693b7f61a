"""What one step feeds the model: token ids gathered on the device, and the metadata attention needs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch

from gpu_worker.kernels.metadata import AttentionMetadata
from gpu_worker.rows import RowTable, StepPlan
from gpu_worker.staging import HostArray

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True, slots=True)
class StepInputs(Generic[A]):
    """One step's index arrays, on the host or on the device; T tokens, s sequences, n of which sample.

    token_places [T] int64: where each token's id stands in the flattened token table. The next five are those
    of AttentionMetadata. sampling_tokens [n] int64: which tokens' hidden states give logits, None for all;
    sampled_places [n] int64: where the sampled ids go in the flattened token table.
    """

    token_places: A
    query_start: A
    seq_lens: A
    block_tables: A
    positions: A
    slots: A
    sampling_tokens: A | None
    sampled_places: A
    num_decodes: int
    max_query_len: int
    max_seq_len: int

    def map(self, move: Callable[[A], B]) -> "StepInputs[B]":
        """The same with every array moved."""
        return StepInputs(
            move(self.token_places),
            move(self.query_start),
            move(self.seq_lens),
            move(self.block_tables),
            move(self.positions),
            move(self.slots),
            None if self.sampling_tokens is None else move(self.sampling_tokens),
            move(self.sampled_places),
            self.num_decodes,
            self.max_query_len,
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
    max_seq_len = int(ends.max())
    sampled_rows = plan.rows[plan.samples]
    all_sample = len(sampled_rows) == len(positions)
    return StepInputs(
        token_places=token_rows * stride + positions,
        query_start=query_start,
        seq_lens=ends.astype(np.int32),
        block_tables=rows.block_tables[plan.rows, : -(-max_seq_len // block_size)],
        positions=positions.astype(np.int32),
        slots=blocks * block_size + positions % block_size,
        sampling_tokens=None if all_sample else query_start[1:][plan.samples].astype(np.int64) - 1,
        sampled_places=sampled_places(rows, plan),
        num_decodes=plan.num_decodes,
        max_query_len=int(plan.query_lens.max()),
        max_seq_len=max_seq_len,
    )


def sampled_places(rows: RowTable, plan: StepPlan) -> HostArray:
    """Where the ids that `plan` samples go in the flattened token table: [n] int64."""
    sampled = plan.rows[plan.samples]
    return sampled * rows.tokens.shape[1] + rows.known[sampled]


def attention_metadata(inputs: StepInputs[torch.Tensor]) -> AttentionMetadata:
    """What the attention calls of the step are given."""
    return AttentionMetadata(
        query_start=inputs.query_start,
        seq_lens=inputs.seq_lens,
        block_tables=inputs.block_tables,
        positions=inputs.positions,
        slots=inputs.slots,
        num_decodes=inputs.num_decodes,
        max_query_len=inputs.max_query_len,
        max_seq_len=inputs.max_seq_len,
    )
