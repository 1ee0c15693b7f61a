"""Steps that prefill as CUDA graphs, up to some number of tokens: launching kernels one by one would be more
work for the host than so few tokens are for the device.

All that differs from step to step is in one vector of integers, built on the host and copied to where the
graphs read it. A graph is for so many tokens in all; how many of them decode, and how the others are shared
out among sequences, is data:

    tokens      0 .. num_decodes ..              .. num_tokens .. size
                one of each      those of chunks               none's
                sequence

The block tables of what decodes are gathered on the device, from those of all rows.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch

from gpu_worker.capturing import capture_graphs
from gpu_worker.graphs import DeviceTables, shared_layout
from gpu_worker.inputs import StepInputs
from gpu_worker.kernels.metadata import AttentionMetadata, ChunkKeys
from gpu_worker.kernels.ops import KVCaches
from gpu_worker.models import LlamaModel
from gpu_worker.rows import RowTable, StepPlan
from gpu_worker.shared_prefixes import SharedGroups, SharedLayout
from gpu_worker.staging import HostArray

# Tokens in a step: with more, an 8B model takes the device longer than launching takes the host.
_SIZES = (16, 32, 64, 96, 128, 160, 192, 256, 320, 384, 432, 512, 640, 768, 896, 1024, 1280, 1536, 1792, 2048)
# Of a step that is replayed: sequences that prefill, and tokens that they have in their blocks; less of both
# in graphs for up to so many tokens, where looking for what is not there would take its share.
_FEW_TOKENS = 192
_MOST_CHUNKS = (8, 32)
_MOST_KEYS = (16_384, 65_536)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where things are in the vector of a graph for `size` tokens, and at most so many of other things."""

    size: int
    decodes: int
    chunks: int
    blocks: int
    shared: SharedLayout

    @property
    def lengths(self) -> tuple[int, ...]:
        """counts, query_start, seq_lens, rows, positions, slots, token_places, chunk starts and blocks, and
        those of `shared`.
        """
        seqs = self.decodes + self.chunks
        per_token = (self.size,) * 3
        return (4, seqs + 1, seqs, seqs, *per_token, self.chunks, self.blocks, *self.shared.lengths)

    @property
    def total(self) -> int:
        return sum(self.lengths)

    def views(self, vector: torch.Tensor) -> list[torch.Tensor]:
        """The parts of `vector`, on the device."""
        ends = list(accumulate(self.lengths))
        return [vector[end - n : end] for end, n in zip(ends, self.lengths, strict=True)]

    def pack(self, inputs: StepInputs[HostArray], rows: HostArray, shared: SharedGroups | None) -> HostArray:
        """[total] int32 of a step that fits."""
        vector = np.zeros(self.total, np.int32)
        parts = np.split(vector, list(accumulate(self.lengths))[:-1])
        counts, query_start, seq_lens, row_numbers, positions, slots, places, starts, blocks = parts[:9]
        self.shared.pack(shared, vector[-self.shared.total :])
        num_seqs, num_tokens = len(rows), len(inputs.positions)
        counts[:3] = inputs.counts
        query_start[: num_seqs + 1] = inputs.query_start
        seq_lens[:num_seqs] = inputs.seq_lens
        row_numbers[:num_seqs] = rows
        positions[:num_tokens] = inputs.positions
        slots[:num_tokens] = inputs.slots
        slots[num_tokens:] = -1
        places[:num_tokens] = inputs.token_places
        if inputs.chunk_starts is not None and inputs.chunk_blocks is not None:
            starts[: len(inputs.chunk_starts)] = inputs.chunk_starts
            blocks[: len(inputs.chunk_blocks)] = inputs.chunk_blocks
        return vector


class MixedGraphs:
    """The captured graphs, and the buffers they work on."""

    def __init__(self, model: LlamaModel, rows: RowTable, tables: DeviceTables, kv_caches: KVCaches) -> None:
        limits = rows.limits
        self._model = model
        self._rows = rows
        self._tables = tables
        self._kv_caches = kv_caches
        self._sizes = [size for size in _SIZES if size <= limits.max_batched_tokens]
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        largest = self._layout(self._sizes[-1]).total if self._sizes else 0
        self._vector = torch.zeros(largest, dtype=torch.int32, device=model.device)
        shape = (max(self._sizes, default=0), model.config.hidden_size)
        self._hidden = torch.zeros(shape, dtype=model.dtype, device=model.device)

    def capture(self, stop: Callable[[], None]) -> None:
        """Captures a graph for each size that pays; `stop` is called before each, and may raise."""
        pool = torch.cuda.graph_pool_handle()
        self._graphs = capture_graphs(self._sizes[::-1], self._clear, self._forward, stop, pool)
        self._sizes = sorted(self._graphs)

    def covers(self, plan: StepPlan) -> bool:
        """Whether there is a graph for `plan`."""
        chunks = len(plan.rows) - plan.num_decodes
        if not self._graphs or not chunks or plan.num_tokens > self._sizes[-1]:
            return False
        layout = self._layout(self._size_for(plan))
        blocks = -(-plan.ends[plan.num_decodes :] // self._rows.limits.block_size)
        return chunks <= layout.chunks and int(blocks.sum()) <= layout.blocks

    def host_inputs(
        self, inputs: StepInputs[HostArray], plan: StepPlan, shared: SharedGroups | None
    ) -> HostArray:
        """What `replay` needs of a plan that is covered, to be uploaded."""
        return self._layout(self._size_for(plan)).pack(inputs, plan.rows, shared)

    def replay(self, vector: torch.Tensor, plan: StepPlan) -> torch.Tensor:
        """The hidden states [num_tokens, hidden] of the step; valid until the next one."""
        self._vector[: len(vector)].copy_(vector)
        self._graphs[self._size_for(plan)].replay()
        return self._hidden[: plan.num_tokens]

    def _size_for(self, plan: StepPlan) -> int:
        return self._sizes[bisect_left(self._sizes, plan.num_tokens)]

    def _layout(self, size: int) -> _Layout:
        limits = self._rows.limits
        decodes = min(size, limits.max_rows)
        many = size > _FEW_TOKENS
        blocks = min(_MOST_KEYS[many] // limits.block_size, limits.num_blocks)
        shared = shared_layout(self._model.config, decodes)
        return _Layout(size, decodes, _MOST_CHUNKS[many], blocks, shared)

    def _clear(self, size: int) -> None:
        self._vector.zero_()  # no sequence at all, and slots of block 0, which holds nothing yet

    @torch.inference_mode()
    def _forward(self, size: int) -> None:
        layout = self._layout(size)
        parts: Sequence[torch.Tensor] = layout.views(self._vector)
        counts, query_start, seq_lens, rows, positions, slots, places, starts, blocks = parts[:9]
        metadata = AttentionMetadata(
            query_start=query_start,
            seq_lens=seq_lens,
            block_tables=self._tables.tables.index_select(0, rows[: layout.decodes]),
            positions=positions,
            slots=slots,
            counts=counts,
            num_decodes=layout.decodes,
            num_chunks=layout.chunks,
            max_seq_len=self._rows.limits.max_model_len,
            chunk_keys=ChunkKeys(blocks, starts),
            shared_keys=layout.shared.keys(parts[9:]),
        )
        input_ids = self._rows.tokens.view(-1).index_select(0, places)
        self._hidden[:size] = self._model.forward(input_ids, metadata, self._kv_caches)
