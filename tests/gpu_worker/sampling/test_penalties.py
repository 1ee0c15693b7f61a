"""Bias, forbidden tokens and penalties against transformers and against loops."""

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from gpu_worker.sampling.penalties import adjust
from tests.gpu_worker.sampling.helpers import ask

VOCAB = 40


def adjusted(logits, params, texts, prompt_lens):
    logits = logits.clone()
    width = max(len(text) for text in texts) + 4
    # What stands behind a row's tokens must not count.
    token_table = torch.full((len(texts), width), 7, dtype=torch.int32)
    for row, text in enumerate(texts):
        token_table[row, : len(text)] = torch.tensor(text, dtype=torch.int32)
    asked = ask(params, logits.shape[1], prompt_lens, [len(text) for text in texts])
    adjust(logits, asked, token_table)
    return logits


def random_logits(num_rows):
    torch.manual_seed(0)
    return torch.randn(num_rows, VOCAB) * 3


TEXTS = [[1, 2, 2, 9, 30], [0, 0, 5], [11, 12, 13, 14, 15, 12]]


def test_repetition_penalty_is_that_of_transformers():
    logits = random_logits(3)
    penalties = [1.3, 0.7, 2.0]
    ours = adjusted(logits, [{"repetition_penalty": p} for p in penalties], TEXTS, [2, 3, 1])
    for row, (text, penalty) in enumerate(zip(TEXTS, penalties, strict=True)):
        theirs = RepetitionPenaltyLogitsProcessor(penalty)(
            torch.tensor([text]), logits[row : row + 1].clone()
        )
        torch.testing.assert_close(ours[row], theirs[0])


def test_presence_and_frequency_look_at_the_answer_only():
    logits = random_logits(3)
    prompt_lens = [2, 3, 1]
    params = [
        {"presence_penalty": 0.5, "frequency_penalty": 0.25},
        {"presence_penalty": 2.0},
        {"frequency_penalty": -1.0},
    ]
    ours = adjusted(logits, params, TEXTS, prompt_lens)
    for row, (text, prompt_len) in enumerate(zip(TEXTS, prompt_lens, strict=True)):
        for token in range(VOCAB):
            times = text[prompt_len:].count(token)
            expected = logits[row, token].item()
            expected -= params[row].get("presence_penalty", 0) * (times > 0)
            expected -= params[row].get("frequency_penalty", 0) * times
            assert ours[row, token].item() == pytest.approx(expected, abs=1e-5)


def test_repetition_comes_before_presence_and_frequency():
    logits = random_logits(1)
    params = {"repetition_penalty": 2.0, "presence_penalty": 1.0, "frequency_penalty": 0.5}
    ours = adjusted(logits, [params], [[3, 3, 4]], [1])
    repeated = torch.where(logits > 0, logits / 2, logits * 2)[0]
    assert ours[0, 3].item() == pytest.approx(repeated[3].item() - 1.5, abs=1e-5)
    assert ours[0, 4].item() == pytest.approx(repeated[4].item() - 1.5, abs=1e-5)
    assert ours[0, 5] == logits[0, 5]


def test_bias_and_forbidden_stop_tokens():
    logits = random_logits(3)
    params = [
        {"bias": {3: 100.0, 5: -2.5}},
        {"stop_ids": [4, 8, VOCAB + 3], "min_tokens": 3},  # the answer has two tokens
        {"stop_ids": [4], "min_tokens": 2},  # it has two: enough
    ]
    ours = adjusted(logits, params, [[1], [1, 2, 3], [1, 2, 3]], [1, 1, 1])
    expected = logits.clone()
    expected[0, 3] += 100
    expected[0, 5] -= 2.5
    expected[1, [4, 8]] = -torch.inf
    torch.testing.assert_close(ours, expected)


def test_a_forbidden_token_stays_forbidden_whatever_else_is_asked():
    params = {
        "stop_ids": [4],
        "min_tokens": 9,
        "bias": {4: 1000.0},
        "repetition_penalty": 1.5,
        "presence_penalty": -2.0,
    }
    ours = adjusted(random_logits(1), [params], [[4, 4, 5]], [1])
    assert ours[0, 4] == -torch.inf
    assert torch.isfinite(ours).sum() == VOCAB - 1


def test_rows_that_ask_nothing_are_left_as_they_are():
    logits = random_logits(3)
    ours = adjusted(logits, [{}, {"frequency_penalty": 1.0}, {}], TEXTS, [1, 1, 1])
    assert torch.equal(ours[[0, 2]], logits[[0, 2]])
    assert not torch.equal(ours[1], logits[1])
