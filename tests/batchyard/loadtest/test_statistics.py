import numpy as np
import pytest

from batchyard.errors import ConfigError
from batchyard.loadtest.outcomes import Kind, Outcome
from batchyard.loadtest.statistics import Objectives, parse_objectives, spread, summarize
from tests.batchyard.loadtest.made import lost, outcome

NONE = Objectives()


def test_spread_is_numpys():
    values = np.random.default_rng(0).exponential(0.1, 1000)
    found = spread(values)
    assert found.mean == pytest.approx(1000 * values.mean(), abs=1e-3)
    for name, percent in (("p50", 50), ("p90", 90), ("p95", 95), ("p99", 99), ("max", 100)):
        assert getattr(found, name) == pytest.approx(1000 * np.percentile(values, percent), abs=1e-3)
    assert spread([]) is None


def test_a_run_by_hand():
    # Two requests of five tokens: sent at 0 and 1 s, the last token at 1.28 s.
    found = summarize([outcome(0), outcome(1, sent=1.0, ttft=0.2)], NONE)
    assert found.seconds == 1.28
    assert found.req_per_s == pytest.approx(2 / 1.28, abs=1e-4)
    assert found.output_tok_per_s == pytest.approx(10 / 1.28, abs=1e-2)
    assert found.input_tok_per_s == pytest.approx(20 / 1.28, abs=1e-2)
    assert found.ttft_ms.p50 == pytest.approx(150)
    assert found.itl_ms.max == pytest.approx(20)
    assert found.tpot_ms.mean == pytest.approx(20)
    assert found.e2e_ms.max == pytest.approx(280)
    assert found.good is None


def test_tpot_counts_tokens_and_itl_events():
    found = summarize([outcome(gaps=(0.1,), output_tokens=11, asked=11)], NONE)
    assert found.tpot_ms.p50 == pytest.approx(10)
    assert found.itl_ms.p50 == pytest.approx(100)


def test_what_was_not_answered_counts_nowhere_else():
    outcomes = [
        outcome(0),
        lost(1, end=50.0, error="500: no"),
        lost(2, Kind.REFUSED, end=60.0, retry_after=3.0, error="429: full"),
        lost(3, Kind.CANCELLED, end=70.0),
    ]
    found = summarize(outcomes, Objectives(ttft=1000))
    assert (found.requests, found.ok, found.failed, found.refused, found.cancelled) == (4, 1, 1, 1, 1)
    assert found.seconds == pytest.approx(0.18)
    assert found.good == pytest.approx(1 / 3, abs=1e-4)  # of three that were asked to the end
    assert found.retry_after_s == (3.0, 3.0)
    assert found.errors == {"500: no": 1, "429: full": 1}


def test_nothing_answered():
    found = summarize([lost()], NONE)
    assert (found.req_per_s, found.ttft_ms, found.ok) == (0.0, None, 0)
    assert summarize([], Objectives(ttft=1)).good is None


def test_short_and_uncounted():
    outcomes = [outcome(asked=9), outcome(asked=9, pinned=False), outcome(counted=False)]
    found = summarize(outcomes, NONE)
    assert (found.short, found.uncounted) == (1, 1)


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["ttft:100.5"], True),
        (["ttft:99"], False),
        (["itl:20.5", "ttft:500"], True),
        (["itl:19"], False),
        (["tpot:19"], False),
        (["e2e:181"], True),
        (["e2e:179"], False),
    ],
)
def test_objectives(words, kept):
    assert parse_objectives(words).kept(outcome()) is kept


def test_one_long_gap_of_many_breaks_the_itl_objective():
    assert not Objectives(itl=50).kept(outcome(gaps=(0.02,) * 60 + (0.4,)))
    assert Objectives(itl=50).kept(outcome(gaps=(0.02,) * 500 + (0.4,)))


def test_an_answer_of_one_token_has_no_gaps_to_break():
    alone = outcome(gaps=())
    assert alone.tpot is None
    assert Objectives(itl=1, tpot=1).kept(alone)


@pytest.mark.parametrize("word", ["ttft", "ttft:x", "speed:3"])
def test_objectives_that_make_no_sense(word):
    with pytest.raises(ConfigError, match="--goodput"):
        parse_objectives([word])


def test_outcomes_survive_json():
    for one in (outcome(3, sent=1.5, retry_after=2.0, turn=2), lost(error="x"), outcome(counted=False)):
        assert Outcome.from_json(one.to_json()).to_json() == one.to_json()
        assert Outcome.from_json(one.to_json()).stamps == pytest.approx(one.stamps, abs=1e-6)
