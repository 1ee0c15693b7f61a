"""A step that is on its way: what it takes to make a StepResult of it once the device is done."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from gpu_worker.prompt_logprobs import PromptSpan
from gpu_worker.readback import Pending
from gpu_worker.sampling.logprobs import TokenLogprobs
from gpu_worker.step_clock import StepClock, StepTimes
from protos.packing import pack_f32, pack_i32
from protos.sampling_pb2 import Logprobs
from protos.step_pb2 import RowLogprobs, RowPromptLogprobs, StepResult

Ints = npt.NDArray[np.int64]


class StepLoad(NamedTuple):
    """How full the worker is with a step: its sequences and tokens, rows in use, and blocks these hold.

    graph: which kind of CUDA graph the step is, `decode` or `mixed`; empty where it is none.
    """

    num_seqs: int
    num_tokens: int
    num_rows: int
    num_blocks: int
    graph: str = ""


@dataclass(frozen=True, slots=True)
class Launched:
    """A step whose work is queued.

    sampled_rows [n]: in the order of the sampled tokens. logprob_rows, logprob_tops [l]: which of them want
    log-probabilities, and how many alternatives each. `pending` brings the tokens, then four tensors for the
    log-probabilities if there are any, then four for each span.
    """

    step: int
    sampled_rows: Ints
    logprob_rows: Ints
    logprob_tops: Ints
    prompt_spans: list[PromptSpan]
    pending: Pending
    clock: StepClock
    load: StepLoad

    def result(self) -> tuple[StepResult, StepTimes]:
        """Waits for the device, and packs the answer."""
        tensors = self.pending.wait()
        times = self.clock.times()
        result = StepResult(
            step=self.step,
            rows=pack_i32(self.sampled_rows),
            num_tokens=self.load.num_tokens,
            queue_us=times.queue_us,
            forward_us=times.forward_us,
            sample_us=times.sample_us,
        )
        if tensors:
            result.tokens = pack_i32(tensors[0].numpy())
            parts = [TokenLogprobs(*tensors[i : i + 4]) for i in range(1, len(tensors), 4)]
            self._add_logprobs(result, parts)
        return result, times

    def _add_logprobs(self, result: StepResult, parts: list[TokenLogprobs]) -> None:
        if len(self.logprob_rows):
            sampled = _pack(parts.pop(0), self.logprob_tops.tolist())
            rows = self.logprob_rows.tolist()
            result.logprobs.extend(
                RowLogprobs(row=row, logprobs=logprobs) for row, logprobs in zip(rows, sampled, strict=True)
            )
        for span, part in zip(self.prompt_spans, parts, strict=True):
            positions = _pack(part, [span.num_top] * span.count)
            result.prompt_logprobs.append(
                RowPromptLogprobs(row=span.row, start=span.start, positions=positions)
            )


def _pack(of_tokens: TokenLogprobs, num_tops: list[int]) -> list[Logprobs]:
    columns = zip(
        of_tokens.logprobs.tolist(),
        of_tokens.ranks.tolist(),
        of_tokens.top_ids.numpy(),
        of_tokens.top_logprobs.numpy(),
        num_tops,
        strict=True,
    )
    return [
        Logprobs(logprob=logprob, rank=rank, top_ids=pack_i32(ids[:k]), top_logprobs=pack_f32(values[:k]))
        for logprob, rank, ids, values, k in columns
    ]


def flatten(logprobs: TokenLogprobs) -> list[torch.Tensor]:
    """The tensors of `logprobs`, in the order `Launched` expects them."""
    return [logprobs.logprobs, logprobs.ranks, logprobs.top_ids, logprobs.top_logprobs]
