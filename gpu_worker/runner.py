"""Executes steps: the diff into the rows, the tokens through the model, the logits into tokens."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import structlog
import torch

from gpu_worker.inputs import (
    attention_metadata,
    build_inputs,
    gathered_tables,
    sampled_places,
    sampling_tokens,
)
from gpu_worker.kernels.launch_shapes import most_members
from gpu_worker.kernels.ops import KVCaches
from gpu_worker.launched import Launched, StepLoad, flatten
from gpu_worker.models import LlamaModel
from gpu_worker.prompt_logprobs import PromptSpan, prompt_logprobs, prompt_spans
from gpu_worker.readback import readback_for
from gpu_worker.row_checks import check
from gpu_worker.rows import GrownBlocks, RowTable, StepPlan
from gpu_worker.sampling.batch import SamplingBatch
from gpu_worker.sampling.collect import collect
from gpu_worker.sampling.sampler import pick_for, sample
from gpu_worker.shared_prefixes import SharedPrefixes
from gpu_worker.staging import HostArray, Upload, stager_for
from gpu_worker.step_clock import StepClock, clocks_for
from gpu_worker.step_diff import Entry, parse_batch
from protos.step_pb2 import StepBatch

if TYPE_CHECKING:
    from gpu_worker.graphs import DecodeGraphs, DeviceTables
    from gpu_worker.mixed_graphs import MixedGraphs

log = structlog.get_logger()


class Runner:
    """One model, its KV cache and the rows on it. One thread calls it."""

    def __init__(self, model: LlamaModel, rows: RowTable, kv_caches: KVCaches) -> None:
        """kv_caches: (keys, values) of each layer, [num_blocks, block_size, num_kv_heads, head_dim]."""
        self.model = model
        self.rows = rows
        self._kv_caches = kv_caches
        self._stager = stager_for(model.device)
        self._readback = readback_for(model.device)
        self._pick = pick_for(model.device)
        self._clocks = clocks_for(model.device)
        self._tables: DeviceTables | None = None
        self._graphs: DecodeGraphs | None = None
        self._mixed_graphs: MixedGraphs | None = None
        config = model.config
        members = most_members(config.num_heads // config.num_kv_heads)
        self._shared_prefixes = SharedPrefixes(rows, members)

    def capture_graphs(self, stop: Callable[[], None]) -> None:
        """Makes steps CUDA graphs, while no row is in use. `stop` is called often, and may raise."""
        # Imported here: it brings Triton, and not every machine has it.
        from gpu_worker.graphs import DecodeGraphs, DeviceTables
        from gpu_worker.mixed_graphs import MixedGraphs

        self._tables = DeviceTables(self.rows, self.model.device)
        graphs = DecodeGraphs(self.model, self.rows, self._tables, self._kv_caches)
        graphs.capture(stop)
        mixed_graphs = MixedGraphs(self.model, self.rows, self._tables, self._kv_caches)
        mixed_graphs.capture(stop)
        self._graphs, self._mixed_graphs = graphs, mixed_graphs

    def reset(self) -> None:
        """Frees all rows, and counts steps from 1 again."""
        self.rows.reset()

    @torch.inference_mode()
    def execute(self, batch: StepBatch, arrived_ns: int) -> Launched:
        """Starts the step and returns before the device is done with it; steps run in the order of the calls.

        arrived_ns: when the batch came, by `time.perf_counter_ns`. Raises ProtocolError, having changed
        nothing, if the batch must not be executed now; torch.OutOfMemoryError where freeing caches does not
        help.
        """
        diff = parse_batch(batch, self.rows.vocab_size)
        check(self.rows, diff)
        grown = self.rows.apply(diff)
        if diff.entries:
            self._shared_prefixes.forget()
        plan = self.rows.plan(diff)
        spans = prompt_spans(self.rows, plan)

        def launch() -> Launched:
            clock = self._clocks.start(arrived_ns)
            if self._graphs and self._graphs.covers(plan):
                outputs = self._replay(self._graphs, diff.entries, grown, plan, clock)
            elif not len(plan.rows):
                outputs = self._apply_only(diff.entries, grown, clock)
            else:
                outputs = self._compute(diff.entries, grown, plan, spans, clock)
            return self._launched(diff.step, plan, spans, outputs, clock)

        launched = self._launch_again_if_short_of_memory(launch, diff.step)
        self.rows.advance(plan)
        return launched

    def _launch_again_if_short_of_memory(self, launch: Callable[[], Launched], step: int) -> Launched:
        """All that a launch writes, a second one writes again: tokens, keys and values to the same places."""
        try:
            return launch()
        except torch.OutOfMemoryError as error:
            log.warning("out_of_memory", step=step, then="frees caches, and tries again", error=str(error))
        # Outside of the handler: what went wrong holds on to the tensors of the first try.
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        return launch()

    def _replay(
        self,
        graphs: "DecodeGraphs",
        entries: Sequence[Entry],
        grown: GrownBlocks | None,
        plan: StepPlan,
        clock: StepClock,
    ) -> list[torch.Tensor]:
        """Queues a step of nothing but decodes."""
        upload = self._stager.begin()
        apply = self._stage_rows(entries, grown, upload)
        shared = self._shared_prefixes.among(plan)
        inputs = upload.add(graphs.host_inputs(plan, shared))
        places = upload.add(sampled_places(self.rows, plan))
        asked: SamplingBatch[int] = self._collect(plan).map(upload.add)
        clock.begin()
        upload.send()
        apply()
        logits = graphs.replay(upload.get(inputs), len(plan.rows), shared=shared is not None)
        clock.forward_done()
        outputs = self._sample(logits, asked.map(upload.get), upload.get(places))
        clock.sample_done()
        return outputs

    def _compute(
        self,
        entries: Sequence[Entry],
        grown: GrownBlocks | None,
        plan: StepPlan,
        spans: Sequence[PromptSpan],
        clock: StepClock,
    ) -> list[torch.Tensor]:
        """Queues any step; its outputs are as `Launched` expects them."""
        upload = self._stager.begin()
        apply = self._stage_rows(entries, grown, upload)
        forward = self._stage_forward(plan, upload)
        samplers = sampling_tokens(plan)
        chosen = None if samplers is None else upload.add(samplers)
        places = upload.add(sampled_places(self.rows, plan))
        asked: SamplingBatch[int] = self._collect(plan).map(upload.add)
        clock.begin()
        upload.send()
        apply()
        hidden = forward()
        clock.forward_done()
        sampling_hidden = hidden if chosen is None else hidden.index_select(0, upload.get(chosen))
        logits = self.model.logits(sampling_hidden)
        outputs = self._sample(logits, asked.map(upload.get), upload.get(places))
        for span in spans:
            outputs += flatten(prompt_logprobs(self.model, hidden, self.rows.tokens, span))
        clock.sample_done()
        return outputs

    def _apply_only(
        self, entries: Sequence[Entry], grown: GrownBlocks | None, clock: StepClock
    ) -> list[torch.Tensor]:
        """A step in which no sequence takes part."""
        upload = self._stager.begin()
        apply = self._stage_rows(entries, grown, upload)
        clock.begin()
        upload.send()
        apply()
        clock.forward_done()
        clock.sample_done()
        return []

    def _stage_forward(self, plan: StepPlan, upload: Upload) -> Callable[[], torch.Tensor]:
        """Adds what the model is fed to the upload; the returned function queues the model once that is sent.

        It returns the hidden states [num_tokens, hidden].
        """
        host_inputs = build_inputs(self.rows, plan)
        graphs = self._mixed_graphs
        if graphs and graphs.covers(plan):
            shared = self._shared_prefixes.among(plan)
            vector = upload.add(graphs.host_inputs(host_inputs, plan, shared))
            return lambda: graphs.replay(upload.get(vector), plan)
        numbers = host_inputs.map(upload.add)
        tables = upload.add(gathered_tables(self.rows, plan))

        def forward() -> torch.Tensor:
            inputs = numbers.map(upload.get)
            input_ids = self.rows.tokens.view(-1).index_select(0, inputs.token_places)
            metadata = attention_metadata(inputs, upload.get(tables))
            return self.model.forward(input_ids, metadata, self._kv_caches)

        return forward

    def _sample(
        self, logits: torch.Tensor, asked: SamplingBatch[torch.Tensor], places: torch.Tensor
    ) -> list[torch.Tensor]:
        """Samples, and puts the tokens at `places` of the token table: the next step reads them there."""
        sampled = sample(logits, asked, self.rows.tokens, places, self._pick)
        return [sampled.tokens, *([] if sampled.logprobs is None else flatten(sampled.logprobs))]

    def _stage_rows(
        self, entries: Sequence[Entry], grown: GrownBlocks | None, upload: Upload
    ) -> Callable[[], None]:
        """Adds what rows are to the upload; the returned function puts it in its place once that is sent."""
        new_tokens = [upload.add(entry.tokens) for entry in entries]
        apply_tables = self._tables.stage(entries, grown, upload) if self._tables else None

        def apply() -> None:
            for entry, number in zip(entries, new_tokens, strict=True):
                self.rows.tokens[entry.row, : len(entry.tokens)] = upload.get(number)
            if apply_tables:
                apply_tables()

        return apply

    def _collect(self, plan: StepPlan) -> SamplingBatch[HostArray]:
        rows = plan.rows[plan.samples]
        table = self.rows
        return collect(table.sampling, rows, table.prompt_len[rows], table.known[rows], table.vocab_size)

    def _launched(
        self,
        step: int,
        plan: StepPlan,
        spans: list[PromptSpan],
        outputs: list[torch.Tensor],
        clock: StepClock,
    ) -> Launched:
        sampled_rows = plan.rows[plan.samples]
        num_tops = self.rows.sampling.logprobs[sampled_rows]
        return Launched(
            step=step,
            sampled_rows=sampled_rows,
            logprob_rows=sampled_rows[num_tops >= 0],
            logprob_tops=num_tops[num_tops >= 0],
            prompt_spans=spans,
            pending=self._readback.start(outputs),
            clock=clock,
            load=StepLoad(
                len(plan.rows),
                plan.num_tokens,
                self.rows.num_active,
                self.rows.num_held_blocks,
                self._graph_for(plan),
            ),
        )

    def _graph_for(self, plan: StepPlan) -> str:
        if self._graphs and self._graphs.covers(plan):
            return "decode"
        if self._mixed_graphs and self._mixed_graphs.covers(plan):
            return "mixed"
        return ""
