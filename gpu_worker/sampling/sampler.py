"""Sampling: logits in, token ids and log-probabilities out."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from gpu_worker.sampling import reference
from gpu_worker.sampling.batch import Picks, SamplingBatch
from gpu_worker.sampling.logprobs import TokenLogprobs, token_logprobs
from gpu_worker.sampling.penalties import adjust

# One token [n] int64 for each row of logits [n, vocab] float32, which it may overwrite.
Pick = Callable[[torch.Tensor, Picks[torch.Tensor] | None], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Sampled:
    """tokens [n] int64; logprobs of the rows that asked, in the order of their index."""

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
    logits: torch.Tensor, asked: SamplingBatch[torch.Tensor], token_table: torch.Tensor, pick: Pick
) -> Sampled:
    """One token for each row of `logits` [n, vocab] float32, which is overwritten.

    What a row gets depends on its own logits, parameters, key and tokens alone, whatever else is in the
    batch. Never waits for a GPU.
    """
    own = None
    if asked.logprobs is not None:
        own = logits.index_select(0, asked.logprobs.index).log_softmax(1)
    adjust(logits, asked, token_table)
    tokens = pick(logits, asked.picks)
    if own is None or asked.logprobs is None:
        return Sampled(tokens, None)
    chosen = tokens.index_select(0, asked.logprobs.index)
    return Sampled(tokens, token_logprobs(own, chosen, asked.logprobs.max_top))
