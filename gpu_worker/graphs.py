"""Decode steps as CUDA graphs: the whole forward pass of n rows is one launch.

    host      rows, computed ──copy──┐                                      (8 bytes a row)
    device    token table ───────────┼─▶ inputs kernel ─▶ layers ─▶ logits  (captured, once per size)
              block tables ──────────┘

Graphs are captured for a list of sizes, the largest first, in one memory pool. A step takes the smallest that
holds its rows; the rest is padding, which writes nothing and sees nothing. Everything a graph reads or writes
stays where it is: steps run in order on one stream, so a buffer is free again when the next step begins.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence

import numpy as np
import torch

from gpu_worker.kernels.decode_inputs import decode_inputs
from gpu_worker.kernels.metadata import AttentionMetadata
from gpu_worker.models import LlamaModel
from gpu_worker.rows import GrownBlocks, RowTable, StepPlan
from gpu_worker.staging import HostArray, Upload
from gpu_worker.step_diff import Entry

KVCaches = Sequence[tuple[torch.Tensor, torch.Tensor]]


def graph_sizes(max_rows: int) -> list[int]:
    """1, 2, 4, then every 8 up to 256 and every 16 after, and `max_rows`; ascending."""
    sizes = {1, 2, 4, *range(8, min(max_rows, 256) + 1, 8), *range(272, max_rows + 1, 16), max_rows}
    return sorted(size for size in sizes if size <= max_rows)


class DeviceTables:
    """The block tables of all rows on the device, kept as the host's are by the same diffs."""

    def __init__(self, rows: RowTable, device: torch.device) -> None:
        limits = rows.limits
        # The last row is padding's, and belongs to nobody.
        shape = (limits.max_rows + 1, limits.max_blocks_per_row)
        self.tables = torch.zeros(shape, dtype=torch.int32, device=device)

    def stage(
        self, entries: Sequence[Entry], grown: GrownBlocks | None, upload: Upload
    ) -> Callable[[], None]:
        """Adds what changed to `upload`; once that is sent, the returned function applies it."""
        new = [(entry.row, len(entry.block_ids), upload.add(entry.block_ids)) for entry in entries]
        places = None if grown is None else (upload.add(grown.places), upload.add(grown.blocks))

        def apply() -> None:
            for row, count, number in new:
                self.tables[row, :count] = upload.get(number)
            if places is not None:
                self.tables.view(-1).index_copy_(0, upload.get(places[0]), upload.get(places[1]))

        return apply


class DecodeGraphs:
    """The captured graphs, and the buffers they work on."""

    def __init__(self, model: LlamaModel, rows: RowTable, tables: DeviceTables, kv_caches: KVCaches) -> None:
        self._model = model
        self._rows = rows
        self._tables = tables
        self._kv_caches = kv_caches
        self._sizes = graph_sizes(rows.limits.max_rows)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._allocate(rows, self._sizes[-1], model.device)

    def capture(self, stop: Callable[[], None]) -> None:
        """Captures a graph per size; `stop` is called before each, and may raise."""
        pool = torch.cuda.graph_pool_handle()
        for size in reversed(self._sizes):
            stop()
            self._inputs[0].fill_(self._rows.limits.max_rows)
            self._forward(size)  # what allocates or compiles on first use does it here
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                self._forward(size)
            self._graphs[size] = graph

    def covers(self, plan: StepPlan) -> bool:
        """Whether `plan` is nothing but decodes, of which there are not too many."""
        return bool(self._graphs) and 0 < plan.num_decodes == len(plan.rows)

    def host_inputs(self, plan: StepPlan) -> HostArray:
        """What `replay` needs of a plan that is covered: [2, size] int32, to be uploaded."""
        size = self._sizes[bisect_left(self._sizes, len(plan.rows))]
        inputs = np.zeros((2, size), np.int32)
        inputs[0] = self._rows.limits.max_rows
        inputs[0, : len(plan.rows)] = plan.rows
        inputs[1, : len(plan.rows)] = plan.starts
        return inputs

    def replay(self, inputs: torch.Tensor, num_rows: int) -> torch.Tensor:
        """The logits [num_rows, vocab] float32 of the step; valid until the next one."""
        size = inputs.shape[1]
        self._inputs[:, :size].copy_(inputs)
        self._graphs[size].replay()
        return self._logits[:num_rows]

    def _allocate(self, rows: RowTable, size: int, device: torch.device) -> None:
        limits = rows.limits

        def ints(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=device)

        self._inputs = ints(2, size)
        self._input_ids, self._positions, self._seq_lens = ints(size), ints(size), ints(size)
        self._slots = ints(size)
        self._block_tables = ints(size, limits.max_blocks_per_row)
        self._query_start = torch.arange(size + 1, dtype=torch.int32, device=device)
        self._logits = torch.empty(size, rows.vocab_size, dtype=torch.float32, device=device)

    @torch.inference_mode()
    def _forward(self, size: int) -> None:
        buffers = (self._input_ids, self._positions, self._seq_lens, self._slots, self._block_tables)
        input_ids, positions, seq_lens, slots, block_tables = outputs = tuple(b[:size] for b in buffers)
        limits = self._rows.limits
        rows, computed = self._inputs[0, :size], self._inputs[1, :size]
        decode_inputs(rows, computed, self._rows.tokens, self._tables.tables, outputs, limits.block_size)
        # Padding counts as well: it gives zeros.
        counts = torch.full((3,), size, dtype=torch.int32, device=rows.device)
        metadata = AttentionMetadata(
            query_start=self._query_start[: size + 1],
            seq_lens=seq_lens,
            block_tables=block_tables,
            positions=positions,
            slots=slots,
            counts=counts,
            num_decodes=size,
            num_chunks=0,
            max_query_len=1,
            max_seq_len=limits.max_model_len,
        )
        hidden = self._model.forward(input_ids, metadata, self._kv_caches)
        self._model.logits(hidden, out=self._logits[:size])
