"""Before and after there is a worker behind the scheduler."""

import asyncio

import pytest

from batchyard.errors import SchedulerLost
from gateway.late_backend import LateBackend
from gateway.link import SchedulerLink
from gateway.submission import Limits
from protos.scheduling_pb2 import Description
from tests.gateway import tiny_tokenizers as tiny
from tests.gateway.fake_scheduler import FakeScheduler, connected


async def test_without_a_scheduler(tmp_path):
    async with SchedulerLink([f"unix:{tmp_path}/nobody"], wait_s=0.01) as link:
        with pytest.raises(SchedulerLost):
            await LateBackend(link, tiny.byte_level()).get()


async def test_once_a_worker_has_come(tmp_path):
    scheduler = FakeScheduler()
    scheduler.description = Description(max_model_len=0)
    async with connected(scheduler, tmp_path / "s") as link:
        late = LateBackend(link, tiny.byte_level(), settling_s=0.01)
        with pytest.raises(SchedulerLost, match="No worker"):
            await late.get()
        scheduler.description = Description(ready=True, max_model_len=64, vocab_size=500)
        backend = await late.get()
        assert backend.limits == Limits(max_model_len=64, vocab_size=500)
        assert await late.get() is backend


async def test_a_scheduler_that_has_just_taken_over_is_given_time(tmp_path):
    scheduler = FakeScheduler()
    scheduler.description = Description(max_model_len=0)
    async with connected(scheduler, tmp_path / "s") as link:
        asked = asyncio.create_task(LateBackend(link, tiny.byte_level(), settling_s=60).get())
        while not scheduler.described:
            await asyncio.sleep(0)
        scheduler.description = Description(ready=True, max_model_len=64, vocab_size=500)
        assert (await asked).limits == Limits(max_model_len=64, vocab_size=500)
