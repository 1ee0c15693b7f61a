import pytest

from batchyard.loadtest.results import Point
from batchyard.loadtest.statistics import Objectives
from batchyard.loadtest.sweep import explore, find_knee
from tests.batchyard.loadtest.made import lost, outcome, run

CAPACITY = 12  # requests that the made server can do at once without getting slower


def made_run(concurrency, objectives=None, stopped=False):
    """A server on which a request takes 1 s, and longer in proportion beyond its capacity."""
    seconds = max(1.0, concurrency / CAPACITY)
    outcomes = [
        outcome(n, sent=(n // concurrency) * seconds, ttft=seconds / 2, gaps=(seconds / 8,) * 4)
        for n in range(4 * concurrency)
    ]
    return run(outcomes, concurrency, objectives=objectives, stopped=stopped)


async def explored(objectives=None):
    async def measure(point: Point):
        return made_run(int(point.value), objectives)

    return await explore(measure)


async def test_the_knee_is_where_the_server_is_full():
    runs = await explored()
    values = [run.point.value for run in runs]
    assert values == [1, 2, 4, 8, 12, 16, 24, 32]
    assert find_knee(runs).point.value == 12


async def test_with_objectives_the_knee_keeps_them():
    runs = await explored(Objectives(e2e=700.0))
    assert [run.point.value for run in runs] == [1]  # not even alone
    assert find_knee(runs) is None
    runs = await explored(Objectives(e2e=1100.0))
    assert find_knee(runs).point.value == 12


async def test_stops_when_it_is_stopped_or_nothing_is_answered():
    async def stopped(point: Point):
        return made_run(int(point.value), stopped=point.value == 4)

    assert [run.point.value for run in await explore(stopped)] == [1, 2, 4]

    async def broken(point: Point):
        return run([lost(n) for n in range(4)], point.value)

    assert len(await explore(broken)) == 1


def test_no_knee_where_nothing_was_answered():
    assert find_knee([run([lost()])]) is None
    assert find_knee([]) is None


@pytest.mark.parametrize(("good", "found"), [(95, True), (94, False)])
def test_nearly_all_requests_must_keep_the_objectives(good, found):
    outcomes = [outcome(n) if n < good else lost(n) for n in range(100)]
    assert (find_knee([run(outcomes, objectives=Objectives(ttft=1000))]) is not None) == found
