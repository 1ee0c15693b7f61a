import pytest

from gateway.answer_times import AnswerTimes


def test_gaps_and_the_mean_after_the_first_piece():
    times = AnswerTimes(now=10.0, tokens=3)
    assert times.per_token is None
    assert times.piece(10.4, 2) == pytest.approx(0.2)
    assert times.piece(11.0, 1) == pytest.approx(0.6)
    assert (times.last, times.tokens) == (11.0, 6)
    assert times.per_token == pytest.approx(1.0 / 3)
