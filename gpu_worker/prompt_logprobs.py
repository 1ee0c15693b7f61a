"""Log-probabilities of prompt tokens, from the hidden states of the chunks they are computed in."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from gpu_worker.models import LlamaModel
from gpu_worker.rows import RowTable, StepPlan
from gpu_worker.sampling.logprobs import TokenLogprobs, join, token_logprobs

# Logits made at once: a long chunk's over a large vocabulary would take gigabytes.
_MAX_LOGITS_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class PromptSpan:
    """Hidden states first_token .. first_token + count of the step predict the prompt tokens of `row` from
    position `start` on."""

    row: int
    start: int
    count: int
    first_token: int
    num_top: int


def prompt_spans(rows: RowTable, plan: StepPlan) -> list[PromptSpan]:
    """Those of the step's chunks whose rows want log-probabilities of their prompts."""
    chunks = slice(plan.num_decodes, None)
    if not np.any(rows.sampling.prompt_logprobs[plan.rows[chunks]] >= 0):
        return []
    return list(_spans(rows, plan))


def _spans(rows: RowTable, plan: StepPlan) -> Iterator[PromptSpan]:
    first_tokens = np.cumsum(plan.query_lens) - plan.query_lens
    for seq in range(plan.num_decodes, len(plan.rows)):
        row, computed = int(plan.rows[seq]), int(plan.starts[seq])
        num_top = int(rows.sampling.prompt_logprobs[row])
        # The hidden state at position p predicts the token at p + 1.
        count = min(computed + int(plan.query_lens[seq]), int(rows.prompt_len[row]) - 1) - computed
        if num_top >= 0 and count > 0:
            yield PromptSpan(row, computed + 1, count, int(first_tokens[seq]), num_top)


def prompt_logprobs(
    model: LlamaModel, hidden: torch.Tensor, token_table: torch.Tensor, span: PromptSpan
) -> TokenLogprobs:
    """Of the tokens of `span`, from all hidden states of the step [T, hidden] and the token table."""
    states = hidden[span.first_token : span.first_token + span.count]
    tokens = token_table[span.row, span.start : span.start + span.count].long()
    at_once = max(1, _MAX_LOGITS_BYTES // (4 * model.config.vocab_size))
    parts = zip(torch.split(states, at_once), torch.split(tokens, at_once), strict=True)
    return join(
        [token_logprobs(model.logits(some).log_softmax(1), their, span.num_top) for some, their in parts]
    )
