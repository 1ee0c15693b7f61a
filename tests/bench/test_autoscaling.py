"""The signal from the real scheduler's books, in virtual time."""

import math

from bench.autoscaling import OBJECTIVE_S, Arrival, arrivals, attempt


def test_an_idle_fleet_wants_hardly_anybody():
    assert attempt([Arrival(at, 64, 4, seed=1) for at in (0.5, 60.0)], workers=2, seconds=60).most < 0.05


def test_the_answer_is_the_same_from_too_few_and_from_too_many():
    asked = arrivals(prompt=8000, output=10, rate=5.5, seconds=60)
    more = attempt(asked, workers=3, seconds=60)
    enough = math.ceil(more.wanted)
    assert enough == 2
    held = attempt(asked, workers=enough, seconds=60)
    assert held.wanted <= enough
    assert held.ttft_p95 < OBJECTIVE_S
    fewer = attempt(asked, workers=enough - 1, seconds=60)
    assert fewer.wanted > enough - 1
    assert fewer.ttft_p95 > OBJECTIVE_S
