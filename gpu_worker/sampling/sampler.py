"""Sampling: logits in, token ids and log-probabilities out."""

from dataclasses import dataclass
from typing import Protocol

import torch

from gpu_worker.sampling import reference
from gpu_worker.sampling.batch import Picks, SamplingBatch
from gpu_worker.sampling.logprobs import TokenLogprobs, token_logprobs
from gpu_worker.sampling.penalties import adjust


class Pick(Protocol):
    """Picks a token for each row: see `gpu_worker.sampling.reference.pick`."""

    def __call__(
        self,
        logits: torch.Tensor,
        picks: Picks[torch.Tensor] | None,
        table: torch.Tensor | None = None,
        places: torch.Tensor | None = None,
    ) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True)
class Sampled:
    """tokens [n] int64, -1 where a logit is NaN; logprobs of the rows that asked, in their index's order."""

    tokens: torch.Tensor
    logprobs: TokenLogprobs | None


def pick_for(device: torch.device) -> Pick:
    """The right one for the device."""
    if device.type != "cuda":
        return reference.pick
    # Imported here: it brings Triton, and not every machine has it.
    from gpu_worker.kernels.sample import pick

    return pick


def sample(
    logits: torch.Tensor,
    asked: SamplingBatch[torch.Tensor],
    token_table: torch.Tensor,
    places: torch.Tensor,
    pick: Pick,
) -> Sampled:
    """One token for each row of `logits` [n, vocab] float32, bfloat16 or float16, which may be overwritten.

    Puts the tokens at `places` [n] int64 of the flattened token_table [rows, width] int32 as well. What a row
    gets depends on its own logits, parameters, key and tokens alone, whatever else is in the batch. Never
    waits for a GPU.
    """
    own = None
    if asked.logprobs is not None:
        own = logits.index_select(0, asked.logprobs.index).float().log_softmax(1)
    if asked.adjusts:
        logits = logits.float()
        adjust(logits, asked, token_table)
    tokens = pick(logits, asked.picks, token_table.view(-1), places)
    if own is None or asked.logprobs is None:
        return Sampled(tokens, None)
    chosen = tokens.index_select(0, asked.logprobs.index).clamp_(min=0)
    return Sampled(tokens, token_logprobs(own, chosen, asked.logprobs.max_top))
