"""min-p, top-k and top-p: which tokens may be sampled at all, in vLLM's order.

Each comes down to one threshold a row: tokens whose logit is below it are out. Tokens that tie with the last
one let in are in as well, so the outcome depends neither on the order of a sort nor on the rest of the batch.
"""

import torch

from gpu_worker.sampling.batch import Random, TopKP

# Likeliest tokens looked at before a whole row is sorted, on the CPU.
_FEW = 256


def filter_logits(logits: torch.Tensor, random: Random[torch.Tensor]) -> torch.Tensor:
    """Puts -inf for what is filtered out of `logits` [r, vocab] float32, temperature applied; in place."""
    if random.min_p is not None:
        index = random.min_p.index
        chosen = logits.index_select(0, index)
        # p < min_p * max p, in logarithms.
        threshold = chosen.amax(1) + random.min_p.log_min_p
        logits.index_copy_(0, index, _cut(chosen, threshold))
    for asked in (random.top_k, random.top_p):
        if asked is not None:
            chosen = logits.index_select(0, asked.index)
            logits.index_copy_(0, asked.index, _cut(chosen, _threshold(chosen, asked)))
    return logits


def _cut(logits: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    return logits.masked_fill_(logits < threshold.unsqueeze(1), -torch.inf)


def _threshold(logits: torch.Tensor, asked: TopKP[torch.Tensor]) -> torch.Tensor:
    """[f] of `logits` [f, vocab], which top-k has cut already when this returns."""
    if asked.top_k is None:
        return _top_p_threshold(logits, asked.top_p)
    best = logits.topk(asked.max_top_k, dim=1).values
    lowest = best.gather(1, asked.top_k.unsqueeze(1) - 1).squeeze(1)
    _cut(logits, lowest)
    return _nucleus(best, logits.logsumexp(1), asked.top_p, lowest)


def _top_p_threshold(logits: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    log_total = logits.logsumexp(1)
    everything = torch.full_like(top_p, -torch.inf)
    vocab_size = logits.shape[1]
    if logits.is_cuda or vocab_size <= _FEW:
        return _nucleus(logits.sort(1, descending=True).values, log_total, top_p, everything)
    # On the CPU a sort is dear, and looking at a result costs nothing: most nuclei are small.
    threshold = _nucleus(logits.topk(_FEW, dim=1).values, log_total, top_p, everything)
    (wide,) = torch.nonzero(torch.isneginf(threshold), as_tuple=True)
    if len(wide):
        ordered = logits.index_select(0, wide).sort(1, descending=True).values
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
