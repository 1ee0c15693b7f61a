"""The small form of `make chaos`: each fault once, with few streams."""

import pytest

from bench.chaos.crowd import Crowd
from bench.chaos.faults import all_faults
from bench.chaos.playing import Record, Stage
from bench.chaos.wire import allowed
from tests.chaos.conftest import STREAMS

PATIENCE = 0.5
# A worker that was told to end is tested by itself; one that the kernel killed is killed.
LONG = ("SIGTERM all workers, one after another", "a worker out of memory, killed by the kernel")
FAULTS = {fault.name: fault for fault in all_faults(Crowd(choices=36, tokens=80)) if fault.name not in LONG}

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.mark.parametrize("name", FAULTS)
async def test_no_stream_is_lost_or_differs(cluster, script, name):
    fault = FAULTS[name]
    if fault.layout.far and not allowed():
        pytest.skip("only root may make network namespaces")
    record = Record(name)
    await Stage(cluster, script, STREAMS, PATIENCE, asks_on=False).play(record, fault)
    assert record.streams >= STREAMS
    assert (record.lost, record.differing, record.unaccounted) == ([], [], [])
    assert all(seconds < 1 for seconds in record.freed)
