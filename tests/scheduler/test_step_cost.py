import numpy as np
import pytest

from scheduler.step_cost import StepCost, Work

EACH, ANSWER, PROMPT = 0.004, 33e-6, 22e-6


def second(steps, rows, prompt_tokens):
    answers = steps * rows
    return Work(steps, answers, prompt_tokens, steps * EACH + answers * ANSWER + prompt_tokens * PROMPT)


def learned(seconds):
    cost = StepCost()
    for each in seconds:
        cost.fade()
        cost.observe(each)
    cost.learn()
    return cost


def test_the_parts_of_a_step_are_told_apart_where_load_varies():
    rng = np.random.default_rng(0)
    cost = learned(second(*rng.integers((50, 1, 0), (150, 200, 9000))) for _ in range(60))
    assert cost.prompt_s == pytest.approx(PROMPT, rel=0.02)
    for rows, tokens in ((256, 0), (32, 0), (128, 20_000)):
        expected = tokens / 2 * (EACH / rows + ANSWER) + tokens * PROMPT
        assert cost.at_best(tokens / 2, tokens, rows) == pytest.approx(expected, rel=0.02)


def test_one_row_that_decodes_alone_leaves_nearly_all_of_a_worker():
    cost = learned(second(steps=200, rows=1, prompt_tokens=0) for _ in range(60))
    assert cost.at_best(answer_tokens=200, prompt_tokens=0, max_rows=256) < 0.02


def test_nothing_is_negative_and_nothing_known_costs_nothing():
    assert StepCost().at_best(1000, 1000, 256) == 0
    # More rows, and yet faster: no line with a price for rows goes through this.
    cost = learned([Work(100, 100, 0, 0.9), Work(100, 6400, 0, 0.5)])
    assert cost.at_best(1, 0, 1) >= 0
    assert cost.prompt_s == 0


def test_work_since():
    assert Work(5, 4, 3, 2.0).since(Work(1, 1, 1, 0.5)) == Work(4, 3, 2, 1.5)
