"""Picking tokens with PyTorch: what workers on the CPU run, and what the kernel is tested against.

Looks at the values of its arguments, which costs nothing on the CPU and would wait on a GPU.
"""

import torch

from gpu_worker.sampling.batch import Picks
from gpu_worker.sampling.filters import filter_logits
from gpu_worker.sampling.rng import gumbel


def pick(
    logits: torch.Tensor,
    picks: Picks[torch.Tensor] | None,
    table: torch.Tensor | None = None,
    places: torch.Tensor | None = None,
) -> torch.Tensor:
    """One token [n] int64 for each row of `logits` [n, vocab] float32, bfloat16 or float16, which may be
    overwritten.

    Greedy rows get the likeliest token, the lowest id where several tie; all are greedy where picks is None.
    A row with a logit that is no number gets -1.
    If the flattened token `table` [size] int32 is given, the tokens are put at `places` [n] int64 of it too,
    token 0 for -1: steps that are on their way already look it up.
    """
    tokens = _pick(logits.float(), picks)
    if table is not None and places is not None:
        table.index_copy_(0, places, tokens.clamp(min=0).int())
    return tokens


def _pick(logits: torch.Tensor, picks: Picks[torch.Tensor] | None) -> torch.Tensor:
    if picks is None:
        return _best(logits)
    (random,) = torch.nonzero(picks.temperature > 0, as_tuple=True)
    if len(random) == len(logits):
        return _draw(logits, picks)
    tokens = _best(logits)
    drawn = _draw(logits.index_select(0, random), picks.map(lambda array: array.index_select(0, random)))
    return tokens.index_copy_(0, random, drawn)


def _draw(logits: torch.Tensor, picks: Picks[torch.Tensor]) -> torch.Tensor:
    """Samples softmax(logits / temperature) by the Gumbel-max trick, filters applied; in place."""
    logits = filter_logits(logits.div_(picks.temperature.unsqueeze(1)), picks)
    return _best(logits.add_(gumbel(picks.keys, logits.shape[1])))


def _best(scores: torch.Tensor) -> torch.Tensor:
    """The token with the highest score in each row, -1 where one is NaN: argmax takes NaN for the highest."""
    tokens = scores.argmax(1)
    return tokens.masked_fill_(scores.gather(1, tokens.unsqueeze(1)).squeeze(1).isnan(), -1)
