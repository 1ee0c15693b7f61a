"""The sampler as a whole: greedy, random frequencies, and independence of the rest of the batch."""

import numpy as np
import pytest
import torch

from tests.gpu_worker.sampling.helpers import sample_rows, tokens_of

VOCAB = 64


def random_logits(num_rows, vocab_size=VOCAB, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, vocab_size, generator=generator) * 2


def test_greedy_is_argmax_with_the_lowest_id_on_ties():
    logits = random_logits(4)
    logits[1, [9, 30, 50]] = 100.0
    assert tokens_of(logits, [{}, {}, {}, {}]) == [
        logits[0].argmax(),
        9,
        logits[2].argmax(),
        logits[3].argmax(),
    ]


def test_a_tiny_temperature_is_greedy():
    logits = random_logits(1)
    assert tokens_of(logits, [{"temperature": 9e-6, "seed": 1}]) == [logits.argmax()]


def test_greedy_follows_penalties_and_bias():
    logits = torch.zeros(3, VOCAB)
    logits[:, 5], logits[:, 6] = 3.0, 2.9
    params = [{}, {"presence_penalty": 0.5}, {"bias": {40: 10.0}}]
    assert tokens_of(logits, params, texts=[[1, 5]] * 3, prompt_lens=[1] * 3) == [5, 6, 40]


@pytest.mark.parametrize(
    "params", [{"temperature": 1.0}, {"temperature": 0.7}, {"temperature": 1.3, "top_k": 10, "top_p": 0.9}]
)
def test_frequencies_fit_the_distribution(params):
    logits = random_logits(1)
    expected = (logits[0].double() / params["temperature"]).softmax(0)
    if "top_k" in params:
        order = expected.argsort(descending=True)[:10]
        top = expected[order] / expected[order].sum()
        kept = order[: int((top.cumsum(0) < params["top_p"]).sum()) + 1]
        expected = torch.zeros_like(expected).index_copy(0, kept, expected[kept])
        expected /= expected.sum()
    draws = 20_000
    many = logits.expand(draws, VOCAB)
    tokens = np.array(tokens_of(many, [{**params, "seed": seed} for seed in range(draws)]))
    counts = np.bincount(tokens, minlength=VOCAB)
    assert not counts[expected.numpy() == 0].any()
    # Chi-square over the tokens that come often enough.
    often = expected.numpy() * draws > 5
    wanted = expected.numpy()[often] * draws
    statistic = ((counts[often] - wanted) ** 2 / wanted).sum()
    degrees = often.sum() - 1
    assert statistic < degrees + 5 * (2 * degrees) ** 0.5


def test_positions_of_one_seed_sample_independently():
    draws = 5000
    logits = torch.zeros(1, 8).expand(draws, 8)
    texts = [[0] * (1 + i % 50) for i in range(draws)]
    tokens = np.array(tokens_of(logits, [{"temperature": 1.0, "seed": i // 50} for i in range(draws)], texts))
    pairs = np.bincount(tokens[:-1] * 8 + tokens[1:], minlength=64)
    statistic = ((pairs - draws / 64) ** 2 / (draws / 64)).sum()
    assert statistic < 63 + 5 * (2 * 63) ** 0.5


ANYTHING = [
    {},
    {"temperature": 1.0, "seed": 5},
    {"temperature": 0.8, "seed": 5, "top_p": 0.9},
    {"temperature": 1.5, "seed": 6, "top_k": 7},
    {"temperature": 1.5, "seed": 2**64 - 1, "min_p": 0.05, "repetition_penalty": 1.3},
    {"frequency_penalty": 1.0, "presence_penalty": -1.0},
    {"temperature": 2.0, "seed": 9, "top_k": 50, "top_p": 0.7, "bias": {3: 2.0}},
    {"temperature": 1.0, "seed": 0, "stop_ids": [1, 2], "min_tokens": 9, "logprobs": 3},
    {"logprobs": 1},
]


def test_the_rest_of_the_batch_does_not_matter():
    texts = [list(range(i + 2)) for i in range(len(ANYTHING))]
    prompt_lens = [1 + i // 2 for i in range(len(ANYTHING))]
    logits = random_logits(len(ANYTHING), 2000)
    together = tokens_of(logits, ANYTHING, texts, prompt_lens)
    backwards = tokens_of(logits.flip(0), ANYTHING[::-1], texts[::-1], prompt_lens[::-1])
    assert backwards[::-1] == together
    for row, params in enumerate(ANYTHING):
        alone = tokens_of(logits[row : row + 1], [params], [texts[row]], [prompt_lens[row]])
        assert alone == [together[row]]


def test_logprobs_of_the_rows_that_ask():
    logits = random_logits(3)
    logits[2] = 1.0
    params = [{"temperature": 1.0, "seed": 3, "logprobs": 0, "bias": {1: 60.0}}, {}, {"logprobs": 4}]
    sampled = sample_rows(logits, params)
    found = sampled.logprobs
    expected = logits.log_softmax(1)
    assert sampled.tokens[0] == 1
    torch.testing.assert_close(found.logprobs, torch.stack([expected[0, 1], expected[2, 0]]))
    # The best of equals: all of them rank first.
    assert found.ranks.tolist() == [(expected[0] > expected[0, 1]).sum() + 1, 1]
    assert found.top_ids.shape == (2, 4)
    torch.testing.assert_close(found.top_logprobs[0], expected[0].topk(4).values)


def test_logits_that_are_no_numbers_are_told():
    logits = random_logits(len(ANYTHING))
    logits[:, 60] = torch.nan
    logits[2, 60] = 0.0
    sampled = sample_rows(logits, ANYTHING)
    assert [token < 0 for token in sampled.tokens.tolist()] == [row != 2 for row in range(len(ANYTHING))]
    assert sampled.tokens.min() == -1
    assert sampled.logprobs.logprobs.isnan().all()


def test_logits_of_half_the_size_give_the_same():
    texts = [list(range(i + 2)) for i in range(len(ANYTHING))]
    logits = random_logits(len(ANYTHING)).bfloat16()
    for params in (ANYTHING, [{}] * len(ANYTHING), [{"temperature": 1.0, "logprobs": 2}] * len(ANYTHING)):
        found, expected = (sample_rows(x, params, texts) for x in (logits, logits.float()))
        assert torch.equal(found.tokens, expected.tokens)
        if expected.logprobs is not None:
            assert torch.equal(found.logprobs.logprobs, expected.logprobs.logprobs)
