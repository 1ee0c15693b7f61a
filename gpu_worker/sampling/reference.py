"""Picking tokens with PyTorch: what workers on the CPU run, and what the kernel is tested against.

Looks at the values of its arguments, which costs nothing on the CPU and would wait on a GPU.
"""

import torch

from gpu_worker.sampling.batch import Picks
from gpu_worker.sampling.filters import filter_logits
from gpu_worker.sampling.rng import gumbel


def pick(logits: torch.Tensor, picks: Picks[torch.Tensor] | None) -> torch.Tensor:
    """One token [n] int64 for each row of `logits` [n, vocab] float32, which may be overwritten.

    Greedy rows get the likeliest token, the lowest id where several tie; all are greedy where picks is None.
    """
    if picks is None:
        return logits.argmax(1)
    (random,) = torch.nonzero(picks.temperature > 0, as_tuple=True)
    if len(random) == len(logits):
        return _draw(logits, picks)
    tokens = logits.argmax(1)
    drawn = _draw(logits.index_select(0, random), picks.map(lambda array: array.index_select(0, random)))
    return tokens.index_copy_(0, random, drawn)


def _draw(logits: torch.Tensor, picks: Picks[torch.Tensor]) -> torch.Tensor:
    """Samples softmax(logits / temperature) by the Gumbel-max trick, filters applied; in place."""
    logits = filter_logits(logits.div_(picks.temperature.unsqueeze(1)), picks)
    return logits.add_(gumbel(picks.keys, logits.shape[1])).argmax(1)
