"""Lengths, prompts and arrivals: what is drawn at random."""

import numpy as np
import pytest

from batchyard.errors import ConfigError
from batchyard.loadtest.arrivals import arrival_times
from batchyard.loadtest.lengths import parse_lengths
from batchyard.loadtest.prompts import WORDS, TokenIds, Words, parse_ids


@pytest.mark.parametrize(
    ("text", "mean", "low", "high"),
    [
        ("512", 512, 512, 512),
        ("100-1024", 562, 100, 1024),
        ("normal:512:100", 512, 1, 1200),
        ("normal:50:100:40:60", 50, 40, 60),
        ("lognormal:220:1.0:8:40000", 220, 8, 40000),
    ],
)
def test_lengths(text, mean, low, high):
    drawn = parse_lengths(text, "--input").draw(np.random.default_rng(0), 20_000)
    assert np.mean(drawn) == pytest.approx(mean, rel=0.03)
    assert low <= min(drawn)
    assert max(drawn) <= high
    assert drawn == parse_lengths(text, "--input").draw(np.random.default_rng(0), 20_000)


@pytest.mark.parametrize(
    "text", ["", "0", "x", "9-3", "normal:5", "lognormal:0:1", "normal:5:1:9:2", "beta:1:2"]
)
def test_lengths_that_make_no_sense_are_named(text):
    with pytest.raises(ConfigError, match="--output"):
        parse_lengths(text, "--output")


def test_ids_stay_in_their_range():
    ids = TokenIds(10, 20)
    assert set(ids.content(ids.draw(np.random.default_rng(0), 1000))) == set(range(10, 20))
    assert parse_ids("10:20") == ids
    with pytest.raises(ConfigError, match="--token-ids"):
        parse_ids("20:10")


def test_words_are_as_many_as_tokens():
    words = Words()
    assert len(words.content(words.draw(np.random.default_rng(0), 50)).split()) == 50
    assert len(set(WORDS)) > 250


@pytest.mark.parametrize("burstiness", [0.0, 0.5, 1.0, 3.0])
def test_arrivals_have_the_rate_and_the_burstiness(burstiness):
    times = arrival_times(20.0, burstiness, 20_000, seed=1)
    gaps = np.diff(times)
    assert times[0] == 0
    assert gaps.mean() == pytest.approx(1 / 20, rel=0.06)
    assert gaps.std() / gaps.mean() == pytest.approx(burstiness, rel=0.06, abs=1e-6)
    assert times == arrival_times(20.0, burstiness, 20_000, seed=1)
    assert burstiness == 0 or times != arrival_times(20.0, burstiness, 20_000, seed=2)


def test_one_arrival():
    assert arrival_times(5.0, 1.0, 1, seed=0) == [0.0]
