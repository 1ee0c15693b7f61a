"""Picking tokens: logits in, token ids out."""

from dataclasses import dataclass

import torch

from gpu_worker.sampling.batch import Random, SamplingBatch
from gpu_worker.sampling.filters import filter_logits
from gpu_worker.sampling.logprobs import TokenLogprobs, token_logprobs
from gpu_worker.sampling.penalties import adjust
from gpu_worker.sampling.rng import gumbel


@dataclass(frozen=True, slots=True)
class Sampled:
    """tokens [n] int64; logprobs of the rows that asked, in the order of their index."""

    tokens: torch.Tensor
    logprobs: TokenLogprobs | None


def sample(logits: torch.Tensor, asked: SamplingBatch[torch.Tensor], token_table: torch.Tensor) -> Sampled:
    """One token for each row of `logits` [n, vocab] float32, which is overwritten.

    What a row gets depends on its own logits, parameters, key and tokens alone, whatever else is in the
    batch. Greedy rows get the likeliest token, the lowest id where several tie. Never waits for a GPU.
    """
    own = None
    if asked.logprobs is not None:
        own = logits.index_select(0, asked.logprobs.index).log_softmax(1)
    adjust(logits, asked, token_table)
    tokens = _pick(logits, asked.random)
    if own is None or asked.logprobs is None:
        return Sampled(tokens, None)
    chosen = tokens.index_select(0, asked.logprobs.index)
    return Sampled(tokens, token_logprobs(own, chosen, asked.logprobs.max_top))


def _pick(logits: torch.Tensor, random: Random[torch.Tensor] | None) -> torch.Tensor:
    if random is None:
        return logits.argmax(1)
    if random.index is None:
        return _draw(logits, random)
    # Drawing overwrites its copy only, so the greedy rows are looked at in one go with the others.
    tokens = logits.argmax(1)
    drawn = _draw(logits.index_select(0, random.index), random)
    return tokens.index_copy_(0, random.index, drawn)


def _draw(logits: torch.Tensor, random: Random[torch.Tensor]) -> torch.Tensor:
    """Samples softmax(logits / temperature) by the Gumbel-max trick, filters applied."""
    logits = filter_logits(logits.div_(random.temperature.unsqueeze(1)), random)
    return logits.add_(gumbel(random.keys, logits.shape[1])).argmax(1)
