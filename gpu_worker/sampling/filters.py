"""min-p, top-k and top-p: which tokens may be sampled at all, in vLLM's order.

Each comes down to one threshold a row: tokens whose logit is below it are out. Tokens that tie with the last
one let in are in as well, so the outcome depends neither on the order of a sort nor on the rest of the batch.
"""

import torch

from gpu_worker.sampling.batch import Picks

# Likeliest tokens looked at before a whole row is sorted: a sort is dear, and most nuclei are small.
_FEW = 256


def filter_logits(logits: torch.Tensor, picks: Picks[torch.Tensor]) -> torch.Tensor:
    """Puts -inf for what is filtered out of `logits` [r, vocab] float32, temperature applied; in place."""
    min_p = _rows(picks.log_min_p > -torch.inf)
    if len(min_p):
        # p < min_p * max p, in logarithms.
        threshold = logits[min_p].amax(1) + picks.log_min_p[min_p]
        _cut(logits, min_p, threshold)
    top_k = _rows(picks.top_k > 0)
    if len(top_k):
        _cut_top_k(logits, top_k, picks)
    top_p = _rows((picks.top_k == 0) & (picks.top_p < 1))
    if len(top_p):
        _cut(logits, top_p, _top_p_threshold(logits[top_p], picks.top_p[top_p]))
    return logits


def _rows(asked: torch.Tensor) -> torch.Tensor:
    return torch.nonzero(asked, as_tuple=True)[0]


def _cut(logits: torch.Tensor, rows: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """What is left of `rows`, which `logits` gets as well."""
    chosen = logits[rows]
    chosen.masked_fill_(chosen < threshold.unsqueeze(1), -torch.inf)
    logits[rows] = chosen
    return chosen


def _cut_top_k(logits: torch.Tensor, rows: torch.Tensor, picks: Picks[torch.Tensor]) -> None:
    """Top-k, and of what it leaves top-p."""
    top_k = picks.top_k[rows].long()
    best = logits[rows].topk(int(top_k.max()), dim=1).values
    lowest = best.gather(1, top_k.unsqueeze(1) - 1).squeeze(1)
    log_total = _cut(logits, rows, lowest).logsumexp(1)
    _cut(logits, rows, _nucleus(best, log_total, picks.top_p[rows], lowest))


def _top_p_threshold(logits: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    log_total = logits.logsumexp(1)
    everything = torch.full_like(top_p, -torch.inf)
    few = min(_FEW, logits.shape[1])
    threshold = _nucleus(logits.topk(few, dim=1).values, log_total, top_p, everything)
    wide = _rows(torch.isneginf(threshold))
    if len(wide) and few < logits.shape[1]:
        ordered = logits[wide].sort(1, descending=True).values
        threshold[wide] = _nucleus(ordered, log_total[wide], top_p[wide], everything[wide])
    return threshold


def _nucleus(
    best: torch.Tensor, log_total: torch.Tensor, top_p: torch.Tensor, otherwise: torch.Tensor
) -> torch.Tensor:
    """The least logit in the smallest set of tokens whose probabilities add up to `top_p` [f]
    (Holtzman et al. 2020), of the highest logits `best` [f, m] in descending order; `otherwise` [f] where
    these do not add up to it. log_total [f]: logarithm of the sum of exp of all logits.
    """
    reached = (best - log_total.unsqueeze(1)).exp_().cumsum_(1) >= top_p.unsqueeze(1)
    # argmax finds the first.
    first = reached.int().argmax(1, keepdim=True)
    threshold = torch.where(reached.gather(1, first), best.gather(1, first), otherwise.unsqueeze(1))
    # Rounding may add up to 1 too early: a row without top-p has none.
    return torch.where(top_p < 1, threshold.squeeze(1), otherwise)
