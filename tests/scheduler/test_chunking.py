from hypothesis import given
from hypothesis import strategies as st

from scheduler.chunking import prompt_budget


def test_a_prompt_alone_takes_the_whole_step():
    assert prompt_budget(8192, 0, 20_000, 512) == 8192


def test_beside_rows_that_decode_it_is_spread_over_steps():
    left, sizes = 1100, []
    while left:
        sizes.append(min(left, prompt_budget(8192, 45, left, 384)))
        left -= sizes[-1]
    assert sizes == [384, 384, 332]


def test_a_long_one_is_computed_at_once():
    assert prompt_budget(8192, 45, 1200, 384) == 8192 - 45


def test_zero_is_no_limit():
    assert prompt_budget(8192, 45, 1000, 0) == 8192 - 45


@given(st.integers(1, 10_000), st.data())
def test_it_fits_and_leaves_nobody_out(budget, data):
    decodes = data.draw(st.integers(0, budget))
    backlog, calm = data.draw(st.integers(0, 100_000)), data.draw(st.integers(0, 10_000))
    prompts = prompt_budget(budget, decodes, backlog, calm)
    assert 0 <= prompts <= budget - decodes
    assert prompts > 0 or decodes == budget
