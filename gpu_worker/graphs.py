"""Decode steps as CUDA graphs: the whole forward pass of n rows is one launch.

    host      rows, computed ──copy──┐                                      (8 bytes a row)
    device    token table ───────────┼─▶ inputs kernel ─▶ layers ─▶ logits  (captured, once per size)
              block tables ──────────┘

Graphs are captured for a list of sizes, the largest first, in one memory pool; of fewer sizes also such that
read keys which sequences share once for all of them. A step takes the smallest that holds its rows; the rest
is padding, which writes nothing and sees nothing. Everything a graph reads or writes stays where it is: steps
run in order on one stream, so a buffer is free again when the next step begins.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from gpu_worker.capturing import capture_graphs
from gpu_worker.kernels.decode_inputs import decode_inputs
from gpu_worker.kernels.launch_shapes import most_members
from gpu_worker.kernels.metadata import AttentionMetadata
from gpu_worker.kernels.ops import KVCaches
from gpu_worker.models import LlamaModel, ModelConfig
from gpu_worker.rows import GrownBlocks, RowTable, StepPlan
from gpu_worker.shared_prefixes import SharedGroups, SharedLayout
from gpu_worker.staging import HostArray, Upload
from gpu_worker.step_diff import Entry

# Sizes of graphs in which sequences may share keys, and their groups at most.
_SHARED_SIZES = (8, 16, 32, 64, 96, 128, 192, 256, 384, 512)
_MOST_GROUPS = 64


def graph_sizes(max_rows: int) -> list[int]:
    """1, 2, 4, then every 8 up to 64, every 16 up to 256 and every 32 after, and `max_rows`; ascending.

    Up to 256 rows a step takes as long as reading the weights does, so padding costs little.
    """
    sizes = {1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, max_rows + 1, 32), max_rows}
    return sorted(size for size in sizes if size <= max_rows)


def shared_layout(config: ModelConfig, seqs: int) -> SharedLayout:
    """For `seqs` sequences."""
    members = most_members(config.num_heads // config.num_kv_heads)
    return SharedLayout(seqs, max(1, min(seqs // 2, _MOST_GROUPS)), members)


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


class _Layout(NamedTuple):
    """The vector of a graph: which rows decode and how much they have computed, `size` numbers each, and
    then, where sequences may share keys, what `shared` says.
    """

    size: int
    shared: SharedLayout | None

    @property
    def total(self) -> int:
        return 2 * self.size + (self.shared.total if self.shared else 0)


class DecodeGraphs:
    """The captured graphs, and the buffers they work on."""

    def __init__(self, model: LlamaModel, rows: RowTable, tables: DeviceTables, kv_caches: KVCaches) -> None:
        self._model = model
        self._rows = rows
        self._tables = tables
        self._kv_caches = kv_caches
        max_rows = rows.limits.max_rows
        self._sizes = graph_sizes(max_rows)
        self._shared_sizes = sorted({*(size for size in _SHARED_SIZES if size < max_rows), max_rows})
        self._graphs: dict[_Layout, torch.cuda.CUDAGraph] = {}
        self._allocate(rows, self._sizes[-1], model.device)

    def capture(self, stop: Callable[[], None]) -> None:
        """Captures a graph for each size that pays; `stop` is called before each, and may raise."""
        pool = torch.cuda.graph_pool_handle()
        for shared, sizes in ((True, self._shared_sizes), (False, self._sizes)):
            layouts = [self._layout(size, shared=shared) for size in reversed(sizes)]
            graphs = capture_graphs(layouts, self._fill_with_padding, self._forward, stop, pool)
            sizes[:] = sorted(layout.size for layout in graphs)
            self._graphs |= graphs

    def covers(self, plan: StepPlan) -> bool:
        """Whether `plan` is nothing but decodes, of which there are not too many."""
        return bool(self._graphs) and 0 < plan.num_decodes == len(plan.rows)

    def host_inputs(self, plan: StepPlan, shared: SharedGroups | None) -> HostArray:
        """What `replay` needs of a plan that is covered: int32, to be uploaded."""
        layout = self._layout_for(len(plan.rows), shared is not None)
        inputs = np.zeros(layout.total, np.int32)
        rows, computed = inputs[: layout.size], inputs[layout.size : 2 * layout.size]
        rows[:] = self._rows.limits.max_rows
        rows[: len(plan.rows)] = plan.rows
        computed[: len(plan.rows)] = plan.starts
        if layout.shared:
            layout.shared.pack(shared, inputs[2 * layout.size :])
        return inputs

    def replay(self, inputs: torch.Tensor, num_rows: int, *, shared: bool) -> torch.Tensor:
        """The logits [num_rows, vocab] float32 of the step; valid until the next one."""
        self._vector[: len(inputs)].copy_(inputs)
        self._graphs[self._layout_for(num_rows, shared)].replay()
        return self._logits[:num_rows]

    def _layout_for(self, num_rows: int, shared: bool) -> _Layout:
        sizes = self._shared_sizes if shared else self._sizes
        return self._layout(sizes[bisect_left(sizes, num_rows)], shared)

    def _layout(self, size: int, shared: bool) -> _Layout:
        return _Layout(size, shared_layout(self._model.config, size) if shared else None)

    def _allocate(self, rows: RowTable, size: int, device: torch.device) -> None:
        limits = rows.limits

        def ints(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=device)

        self._vector = ints(self._layout(size, shared=True).total)
        self._input_ids, self._positions, self._seq_lens = ints(size), ints(size), ints(size)
        self._slots = ints(size)
        self._block_tables = ints(size, limits.max_blocks_per_row)
        self._query_start = torch.arange(size + 1, dtype=torch.int32, device=device)
        self._logits = torch.empty(size, rows.vocab_size, dtype=torch.float32, device=device)

    def _fill_with_padding(self, layout: _Layout) -> None:
        self._vector.zero_()
        self._vector[: layout.size].fill_(self._rows.limits.max_rows)

    @torch.inference_mode()
    def _forward(self, layout: _Layout) -> None:
        size = layout.size
        buffers = (self._input_ids, self._positions, self._seq_lens, self._slots, self._block_tables)
        input_ids, positions, seq_lens, slots, block_tables = outputs = tuple(b[:size] for b in buffers)
        limits = self._rows.limits
        rows, computed = self._vector[:size], self._vector[size : 2 * size]
        decode_inputs(rows, computed, self._rows.tokens, self._tables.tables, outputs, limits.block_size)
        shared_keys = None
        if layout.shared:
            rest = self._vector[2 * size : layout.total]
            shared_keys = layout.shared.keys(torch.split(rest, list(layout.shared.lengths)))
        metadata = AttentionMetadata(
            query_start=self._query_start[: size + 1],
            seq_lens=seq_lens,
            block_tables=block_tables,
            positions=positions,
            slots=slots,
            # Padding counts as well: it gives zeros.
            counts=torch.full((3,), size, dtype=torch.int32, device=rows.device),
            num_decodes=size,
            num_chunks=0,
            max_seq_len=limits.max_model_len,
            shared_keys=shared_keys,
        )
        hidden = self._model.forward(input_ids, metadata, self._kv_caches)
        self._model.logits(hidden, out=self._logits[:size])
