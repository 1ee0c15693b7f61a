"""The small form of `make soak`."""

import pytest

from bench.chaos.faults import answer_faults, redis_faults
from bench.chaos.soak import Soak, report
from tests.chaos.conftest import STREAMS

SECONDS = 12

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_what_processes_hold_is_flat(cluster, script):
    soak = Soak(cluster, script, STREAMS, seed=0)
    outcome = await soak.run([*answer_faults(), *redis_faults()], SECONDS)
    assert outcome.streams > STREAMS
    assert outcome.faults.total() > 0
    assert set(outcome.after) == set(cluster.processes)
    assert outcome.troubles == [], report(outcome)
