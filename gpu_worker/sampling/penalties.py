"""What changes logits before a token is picked: bias, forbidden tokens, and penalties for repeating."""

import torch

from gpu_worker.sampling.batch import Penalties, SamplingBatch


def adjust(logits: torch.Tensor, asked: SamplingBatch[torch.Tensor], token_table: torch.Tensor) -> None:
    """Applies bias, bans and penalties to `logits` [n, vocab] float32 in place, in vLLM's order.

    token_table [rows, width] int32 holds the tokens so far.
    """
    if asked.bias is not None:
        logits.view(-1).index_add_(0, asked.bias.places, asked.bias.values)
    if asked.banned is not None:
        logits.view(-1).index_fill_(0, asked.banned, -torch.inf)
    if asked.penalties is not None:
        penalised = _penalise(logits.index_select(0, asked.penalties.index), asked.penalties, token_table)
        logits.index_copy_(0, asked.penalties.index, penalised)


def _penalise(
    logits: torch.Tensor, penalties: Penalties[torch.Tensor], token_table: torch.Tensor
) -> torch.Tensor:
    """Repetition as in CTRL (Keskar et al. 2019), then frequency and presence as OpenAI defines them.

    The first counts the prompt, the others only the answer.
    """
    in_prompt, in_answer = _occurrences(penalties, token_table, logits.shape[1])
    repeated = (in_prompt > 0) | (in_answer > 0)
    repetition = penalties.repetition.unsqueeze(1)
    weakened = torch.where(logits > 0, logits / repetition, logits * repetition)
    logits = torch.where(repeated, weakened, logits)
    logits -= penalties.frequency.unsqueeze(1) * in_answer
    logits -= penalties.presence.unsqueeze(1) * (in_answer > 0)
    return logits


def _occurrences(
    penalties: Penalties[torch.Tensor], token_table: torch.Tensor, vocab_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """How often each token stands in each row's prompt and in its answer so far: two [p, vocab] int32."""
    tokens = token_table[:, : penalties.width].index_select(0, penalties.rows)
    positions = torch.arange(penalties.width, device=tokens.device)
    prompt_lens, known = penalties.prompt_lens.unsqueeze(1), penalties.known.unsqueeze(1)
    in_prompt = positions < prompt_lens
    in_answer = (positions >= prompt_lens) & (positions < known)
    return _count(tokens, in_prompt, vocab_size), _count(tokens, in_answer, vocab_size)


def _count(tokens: torch.Tensor, counted: torch.Tensor, vocab_size: int) -> torch.Tensor:
    counts = torch.zeros(tokens.shape[0], vocab_size, dtype=torch.int32, device=tokens.device)
    # What stands behind a row's tokens is anything; adding 0 to token 0 counts nothing.
    places = torch.where(counted, tokens, 0).long()
    return counts.scatter_add_(1, places, counted.int())
