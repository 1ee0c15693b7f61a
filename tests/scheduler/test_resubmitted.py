"""Requests that a scheduler which is gone had accepted."""

import asyncio

import pytest

from protos.packing import pack_i32
from protos.scheduling_pb2 import REFUSAL_REASON_OVERLOADED, REFUSAL_REASON_UNAVAILABLE
from scheduler.shedding import QueueLimits
from tests.scheduler.helpers import Client, make_scheduler, submit
from tests.scheduler.simulated_worker import SimulatedTransport, SimulatedWorker, answer
from tests.scheduler.test_core import check_idle, running, settled


def resubmit(client, id, prompt, answered, max_tokens, **fields):
    """As a gateway does: `answered` follows the prompt."""
    message = submit(id, prompt, max_tokens, accepted=True, **fields)
    message.tokens = pack_i32([*prompt, *answered])
    client.tokens[id] = list(answered)
    client.scheduler.submit(client.session, message)


async def test_they_go_on_where_they_were():
    async with running(SimulatedWorker()) as (scheduler, _):
        client = Client(scheduler)
        whole = answer([1, 2, 3], 20)
        for answered in (0, 1, 7, 19):
            resubmit(client, answered, [1, 2, 3], whole[:answered], 20)
        await client.all_finished()
        assert all(tokens == whole for tokens in client.tokens.values())
        # To those that had begun it is not said again that they do.
        assert list(client.cached) == [0]
        await settled(scheduler)
        check_idle(scheduler)


async def test_a_full_queue_takes_them_all_the_same():
    async with running(SimulatedWorker(max_rows=1), limits=QueueLimits(1, 1000)) as (scheduler, _):
        client = Client(scheduler)
        for id in range(2):
            client.submit(id, [id], 20)
        for id in range(2, 6):
            resubmit(client, id, [id], [], 20, timeout_ms=60_000)
        await client.all_finished()
        assert list(client.refused) == [1]
        assert client.refused[1].reason == REFUSAL_REASON_OVERLOADED


async def test_those_that_had_begun_give_way_to_nobody():
    async with running(SimulatedWorker(max_rows=1), limits=QueueLimits(1, 1000)) as (scheduler, _):
        client = Client(scheduler)
        client.submit(0, [0], 20)
        resubmit(client, 1, [1], answer([1], 20)[:5], 20)
        resubmit(client, 2, [2], [], 20)
        client.submit(3, [3], 20, priority=-1)
        await client.all_finished()
        assert sorted(client.refused) == [0, 2]
        assert client.tokens[1] == answer([1], 20)


async def test_they_wait_for_a_worker():
    transport = SimulatedTransport(SimulatedWorker())
    scheduler = make_scheduler(transport)
    client = Client(scheduler)
    client.submit(1, [1], 5)
    resubmit(client, 2, [2], answer([2], 5)[:2], 5)
    await client.until(lambda: client.refused)
    assert client.refused[1].reason == REFUSAL_REASON_UNAVAILABLE
    task = asyncio.create_task(scheduler.run())
    await client.all_finished()
    assert client.tokens[2] == answer([2], 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_so_do_new_ones_while_the_scheduler_settles():
    scheduler = make_scheduler(SimulatedTransport(SimulatedWorker()))
    task = asyncio.create_task(scheduler.run())
    await asyncio.sleep(0)
    client = Client(scheduler)
    assert not scheduler.lanes[0].connected
    client.submit(1, [1], 5)
    await client.all_finished()
    assert client.tokens[1] == answer([1], 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
