"""Executes steps: the diff into the rows, the tokens through the model, the logits into tokens."""

from collections.abc import Sequence

import torch

from gpu_worker.inputs import StepInputs, attention_metadata, build_inputs
from gpu_worker.launched import Launched, StepLoad, flatten
from gpu_worker.models import LlamaModel
from gpu_worker.prompt_logprobs import PromptSpan, prompt_logprobs, prompt_spans
from gpu_worker.readback import readback_for
from gpu_worker.row_checks import check
from gpu_worker.rows import RowTable, StepPlan
from gpu_worker.sampling.batch import SamplingBatch
from gpu_worker.sampling.collect import collect
from gpu_worker.sampling.sampler import sample
from gpu_worker.staging import HostArray, stager_for
from gpu_worker.step_clock import StepClock, start_clock
from gpu_worker.step_diff import Entry, parse_batch
from protos.step_pb2 import StepBatch

KVCaches = Sequence[tuple[torch.Tensor, torch.Tensor]]


class Runner:
    """One model, its KV cache and the rows on it. One thread calls it."""

    def __init__(self, model: LlamaModel, rows: RowTable, kv_caches: KVCaches) -> None:
        """kv_caches: (keys, values) of each layer, [num_blocks, block_size, num_kv_heads, head_dim]."""
        self.model = model
        self.rows = rows
        self._kv_caches = kv_caches
        self._stager = stager_for(model.device)
        self._readback = readback_for(model.device)

    def reset(self) -> None:
        """Frees all rows, and counts steps from 1 again."""
        self.rows.reset()

    @torch.inference_mode()
    def execute(self, batch: StepBatch, arrived_ns: int) -> Launched:
        """Starts the step and returns before the device is done with it; steps run in the order of the calls.

        arrived_ns: when the batch came, by `time.perf_counter_ns`. Raises ProtocolError, having changed
        nothing, if the batch must not be executed now.
        """
        diff = parse_batch(batch, self.rows.vocab_size)
        check(self.rows, diff)
        clock = start_clock(self.model.device, arrived_ns)
        self.rows.apply(diff)
        plan = self.rows.plan(diff)
        spans = prompt_spans(self.rows, plan)
        outputs = self._compute(diff.entries, plan, spans, clock)
        launched = self._launched(diff.step, plan, spans, outputs, clock)
        self.rows.advance(plan)
        return launched

    def _compute(
        self, entries: Sequence[Entry], plan: StepPlan, spans: Sequence[PromptSpan], clock: StepClock
    ) -> list[torch.Tensor]:
        """Queues the step's work; its outputs are as `Launched` expects them."""
        inputs, asked = self._upload(entries, plan)
        if inputs is None:
            clock.forward_done()
            clock.sample_done()
            return []
        flat_table = self.rows.tokens.view(-1)
        input_ids = flat_table.index_select(0, inputs.token_places)
        hidden = self.model.forward(input_ids, attention_metadata(inputs), self._kv_caches)
        clock.forward_done()
        sampling_hidden = hidden
        if inputs.sampling_tokens is not None:
            sampling_hidden = hidden.index_select(0, inputs.sampling_tokens)
        sampled = sample(self.model.logits(sampling_hidden), asked, self.rows.tokens)
        # The next step reads it here, on the device.
        flat_table.index_copy_(0, inputs.sampled_places, sampled.tokens.int())
        outputs = [sampled.tokens]
        if sampled.logprobs is not None:
            outputs += flatten(sampled.logprobs)
        for span in spans:
            outputs += flatten(prompt_logprobs(self.model, hidden, self.rows.tokens, span))
        clock.sample_done()
        return outputs

    def _upload(
        self, entries: Sequence[Entry], plan: StepPlan
    ) -> tuple[StepInputs[torch.Tensor] | None, SamplingBatch[torch.Tensor]]:
        """Brings everything the step needs to the device, new rows' tokens into the token table.

        No inputs where no sequence takes part.
        """
        upload = self._stager.begin()
        new_tokens = [upload.add(entry.tokens) for entry in entries]
        inputs: StepInputs[int] | None = None
        asked: SamplingBatch[int] = SamplingBatch()
        if len(plan.rows):
            inputs = build_inputs(self.rows, plan).map(upload.add)
            asked = self._collect(plan).map(upload.add)
        upload.send()
        for entry, number in zip(entries, new_tokens, strict=True):
            self.rows.tokens[entry.row, : len(entry.tokens)] = upload.get(number)
        return None if inputs is None else inputs.map(upload.get), asked.map(upload.get)

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
            load=StepLoad(len(plan.rows), plan.num_tokens, self.rows.num_active, self.rows.num_held_blocks),
        )
