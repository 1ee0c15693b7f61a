"""Full collections come when few are served, and some time in any case."""

import asyncio
import gc
from contextlib import asynccontextmanager, suppress

import pytest

from gateway.garbage import collect_rarely


class Looks:
    """Says how many are served, and sees which looks led to a full collection."""

    def __init__(self, live):
        self.live = live
        self.collected_at = []
        self.count = 0
        self.enough = asyncio.Event()

    def num_live(self):
        self.count += 1
        if self.count == 23:
            self.enough.set()
        return self.live

    def saw(self, phase, info):
        if phase == "start" and info["generation"] == 2:
            self.collected_at.append(self.count)


@asynccontextmanager
async def collecting(looks):
    gc.callbacks.append(looks.saw)
    task = asyncio.create_task(collect_rarely(looks.num_live, look_every_s=0.001))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        gc.callbacks.remove(looks.saw)


@pytest.mark.parametrize(("live", "when"), [(5, list(range(23))), (5000, [0, 11, 22])])
async def test_when(live, when):
    looks = Looks(live)
    before = gc.get_threshold()
    async with collecting(looks), asyncio.timeout(10):
        await looks.enough.wait()
        assert gc.get_threshold()[2] > 1_000_000
        assert gc.get_freeze_count() > 0
    assert [at for at in looks.collected_at if at < 23] == when
    assert (gc.get_threshold(), gc.get_freeze_count()) == (before, 0)
