"""min-p, top-k and top-p against transformers, with ties, and in mixed batches."""

import pytest
import torch
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from gpu_worker.sampling.filters import filter_logits
from tests.gpu_worker.sampling.helpers import ask

FILTERS = [
    {"top_k": 1},
    {"top_k": 17},
    {"top_p": 0.9},
    {"top_p": 0.01},
    {"min_p": 0.1},
    {"top_k": 30, "top_p": 0.5},
    {"min_p": 0.02, "top_p": 0.8},
    {"min_p": 0.05, "top_k": 5},
    {"min_p": 0.003, "top_k": 40, "top_p": 0.95},
    {"top_k": 100_000},
]


def filtered(logits, params):
    params = [{"temperature": 1.0, **changes} for changes in params]
    asked = ask(params, logits.shape[1], [1] * len(params), [1] * len(params))
    return filter_logits(logits.clone(), asked.picks)


def by_transformers(logits, changes):
    """In vLLM's order: min-p, top-k, top-p."""
    if "min_p" in changes:
        logits = MinPLogitsWarper(changes["min_p"])(None, logits)
    if "top_k" in changes:
        logits = TopKLogitsWarper(changes["top_k"])(None, logits)
    if "top_p" in changes:
        logits = TopPLogitsWarper(changes["top_p"])(None, logits)
    return logits


@pytest.mark.parametrize("vocab_size", [50, 3000])
@pytest.mark.parametrize("spread", [0.3, 1.0, 4.0])
def test_the_same_tokens_as_transformers(vocab_size, spread):
    torch.manual_seed(0)
    logits = torch.randn(len(FILTERS), vocab_size) * spread
    ours = filtered(logits, FILTERS)
    for row, changes in enumerate(FILTERS):
        theirs = by_transformers(logits[row : row + 1], changes)[0]
        assert torch.equal(ours[row].isneginf(), theirs.isneginf()), changes
        kept = ~theirs.isneginf()
        assert torch.equal(ours[row][kept], logits[row][kept])
        assert kept.any()


def test_alone_as_in_a_batch():
    torch.manual_seed(1)
    # Rounded as bfloat16 models do, so that there are ties.
    logits = torch.randn(len(FILTERS), 1000).bfloat16().float()
    together = filtered(logits, FILTERS)
    for row, changes in enumerate(FILTERS):
        assert torch.equal(filtered(logits[row : row + 1], [changes])[0], together[row])


def test_ties_with_the_last_one_stay():
    logits = torch.tensor([[1.0, 3.0, 2.0, 2.0, 2.0, 0.0]])
    assert (filtered(logits, [{"top_k": 2}]) > -torch.inf).tolist() == [
        [False, True, True, True, True, False]
    ]
    logits = torch.log(torch.tensor([[0.4, 0.2, 0.2, 0.15, 0.05]]))
    assert (filtered(logits, [{"top_p": 0.5}]) > -torch.inf).tolist() == [[True, True, True, False, False]]


def test_top_p_of_zero_keeps_the_likeliest_and_of_one_keeps_all():
    logits = torch.randn(2, 500)
    kept = filtered(logits, [{"top_p": 0.0}, {"top_k": 500, "top_p": 1.0}]) > -torch.inf
    assert kept[0].nonzero().tolist() == [[logits[0].argmax()]]
    assert kept[1].all()
