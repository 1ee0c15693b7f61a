"""How many workers are wanted, as a function: what must hold of it whatever the numbers."""

import math
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from scheduler.demand import HORIZON, TARGET, Use, growth, workers_wanted
from scheduler.drain import Size

amounts = st.floats(0, 100)
uses = st.builds(Use, rows=amounts, blocks=amounts, compute=amounts)
rates = st.floats(1, 20)
waits = st.floats(0, 600)
objectives = st.floats(0.1, 60)
fleets = st.integers(1, 100)


def test_what_one_worker_can_do_wants_one_worker():
    assert workers_wanted(3, Use(rows=TARGET), 1.0, 0.0, 1.0) == 1
    assert workers_wanted(3, Use(), 1.0, 0.0, 1.0) == 0


def test_the_scarcest_resource_decides():
    assert workers_wanted(1, Use(rows=0.1, blocks=2 * TARGET, compute=0.3), 1.0, 0.0, 1.0) == 2


def test_a_queue_is_done_with_within_the_horizon():
    # Two workers have a minute's queue: two more would have half of it done in half a minute.
    more = workers_wanted(2, Use(), 1.0, HORIZON + 0.5, 1.0)
    assert more == 2


@given(fleets, uses, rates, waits, objectives)
def test_finite_and_never_negative(workers, use, rate, wait, objective):
    wanted = workers_wanted(workers, use, rate, wait, objective)
    assert 0 <= wanted < math.inf


@given(fleets, uses, rates, waits, objectives, st.floats(0, 10))
def test_more_load_never_wants_fewer(workers, use, rate, wait, objective, more):
    wanted = workers_wanted(workers, use, rate, wait, objective)
    for resource in ("rows", "blocks", "compute"):
        fuller = replace(use, **{resource: getattr(use, resource) + more})
        assert workers_wanted(workers, fuller, rate, wait, objective) >= wanted
    assert workers_wanted(workers, use, rate + more, wait, objective) >= wanted
    assert workers_wanted(workers, use, rate, wait + more, objective) >= wanted
    assert workers_wanted(workers, use, rate, wait, objective + more) <= wanted


@given(fleets, uses, rates, waits, objectives, st.integers(2, 5))
def test_twice_the_fleet_under_twice_the_load_wants_twice_as_many(workers, use, rate, wait, objective, times):
    larger = Use(use.rows * times, use.blocks * times, use.compute * times)
    wanted = workers_wanted(workers, use, rate, wait, objective)
    assert workers_wanted(workers * times, larger, rate, wait, objective) == pytest.approx(times * wanted)


@given(fleets, fleets, uses, objectives)
def test_as_many_are_wanted_whatever_there_is_while_nobody_is_late(workers, others, use, objective):
    """So a fleet that follows it comes to rest: the answer does not change because it was followed."""
    wanted = workers_wanted(workers, use, 1.0, objective / 2, objective)
    assert workers_wanted(others, use, 1.0, 0.0, objective) == wanted


@given(uses, waits, objectives)
def test_a_fleet_that_follows_it_comes_to_rest(use, wait, objective):
    """With a queue as well: the wait is worked off in proportion, and then the fleet stays as it is."""
    assume(use.scarcest > 0)
    workers, sizes = 1, []
    queue = wait * workers  # seconds of one worker's work
    for _ in range(20):
        workers = max(1, math.ceil(workers_wanted(workers, use, 1.0, queue / workers, objective)))
        queue = max(0.0, queue - workers * HORIZON * (1 - use.scarcest / workers))
        sizes.append(workers)
    assert len(set(sizes[-10:])) == 1


@given(st.floats(0, 1e6), st.floats(0, 1e9), st.floats(0, 1e6), st.floats(0, 1e9))
def test_growth_is_never_less_than_one(requests, tokens, more_requests, more_tokens):
    begun = Size(requests, tokens)
    assert growth(begun, begun) == 1
    assert growth(begun.plus(Size(more_requests, more_tokens)), begun) >= 1
    assert growth(Size(), begun) == 1


def test_a_few_requests_are_no_flood():
    assert growth(Size(1, 100), Size()) == 101
    assert growth(Size(60, 600), Size(29, 299)) == pytest.approx(61 / 30, rel=0.02)
