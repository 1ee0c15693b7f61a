"""Log-probabilities of the model's own distribution: before temperature, bias and penalties."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Of the tokens that stand at n places, and of the k likeliest tokens at each.

    logprobs [n] float32; ranks [n] int64, 1 is the likeliest; top_ids [n, k] int64 and top_logprobs [n, k]
    float32, likeliest first.
    """

    logprobs: torch.Tensor
    ranks: torch.Tensor
    top_ids: torch.Tensor
    top_logprobs: torch.Tensor


def token_logprobs(logprobs: torch.Tensor, tokens: torch.Tensor, max_top: int) -> TokenLogprobs:
    """Of `logprobs` [n, vocab] float32 and the tokens [n] int64 that stand there.

    Tokens that tie share the better rank.
    """
    own = logprobs.gather(1, tokens.unsqueeze(1))
    ranks = (logprobs > own).sum(1) + 1
    top_logprobs, top_ids = logprobs.topk(max_top, dim=1)
    return TokenLogprobs(own.squeeze(1), ranks, top_ids, top_logprobs)


def join(parts: list[TokenLogprobs]) -> TokenLogprobs:
    """Several, one after another."""
    return TokenLogprobs(
        torch.cat([part.logprobs for part in parts]),
        torch.cat([part.ranks for part in parts]),
        torch.cat([part.top_ids for part in parts]),
        torch.cat([part.top_logprobs for part in parts]),
    )
