"""Common prompts are in every worker's cache before it counts as ready."""

import asyncio

import structlog

from protos.packing import pack_i32
from protos.scheduling_pb2 import WarmPrompt
from scheduler.preemption import Cause
from scheduler.shedding import QueueLimits
from tests.scheduler.helpers import Client, make_scheduler
from tests.scheduler.simulated_worker import SimulatedTransport, SimulatedWorker, answer
from tests.scheduler.test_core import check_idle, running, settled

PROMPT = list(range(20))


def warm_prompt(prompt=PROMPT, salt=""):
    return WarmPrompt(tokens=pack_i32(prompt), cache_salt=salt)


async def ready(scheduler, warming=0):
    async with asyncio.timeout(5):
        while not scheduler.describe().ready:
            await asyncio.sleep(0)
    assert scheduler.describe().warming == warming


async def ask(client, id, prompt, salt=""):
    client.submit(id, prompt, 3, salt=salt)
    await client.all_finished()
    assert client.tokens[id] == answer(prompt, 3)
    return client.cached[id]


async def test_ready_waits_and_the_first_request_finds_its_beginning():
    scheduler = make_scheduler(SimulatedTransport(SimulatedWorker()))
    scheduler.warm([warm_prompt(), warm_prompt([7] * 9, "tenant"), warm_prompt()])
    task = asyncio.create_task(scheduler.run())
    states = []
    async with asyncio.timeout(5):
        while not scheduler.describe().ready:
            states.append((scheduler.lanes[0].connected, scheduler.describe().warming))
            await asyncio.sleep(0)
    assert (True, 2) in states
    client = Client(scheduler)
    assert await ask(client, 1, [*PROMPT, 3]) == 20
    assert await ask(client, 2, [7] * 9) == 0
    assert await ask(client, 3, [7] * 9, "tenant") == 8
    await settled(scheduler)
    check_idle(scheduler)
    task.cancel()
    await asyncio.wait([task])


async def test_every_worker_gets_them_and_gets_them_again_when_it_comes_back():
    workers = [SimulatedWorker(), SimulatedWorker()]
    async with running(*workers) as (scheduler, transports):
        scheduler.warm([warm_prompt()])
        await ready(scheduler)
        await settled(scheduler)
        assert [worker.computed_tokens for worker in workers] == [20, 20]
        for broken in range(1, 4):  # it comes back while what it was asked for is on its way, too
            transports[0].stream.break_off()
            async with asyncio.timeout(5):
                while transports[0].streams == broken or not scheduler.lanes[0].connected:
                    await asyncio.sleep(0)
            assert scheduler.describe().ready  # the other one is
        async with asyncio.timeout(5):
            while workers[0].computed_tokens < 40:
                await asyncio.sleep(0)
        await settled(scheduler)
        assert scheduler.lanes[0].load_for(request_of(scheduler, [*PROMPT, 1])).uncached == 1
        check_idle(scheduler)


def request_of(scheduler, prompt):
    client = Client(scheduler)
    client.submit(1, prompt, 1)
    request = scheduler.waiting.pop()
    del client.session.requests[1]
    return request


async def test_those_who_wait_come_after_the_warm_prompts():
    async with running(SimulatedWorker(budget=8)) as (scheduler, _):
        client = Client(scheduler)
        client.submit(1, [*PROMPT, 9], 3)
        scheduler.warm([warm_prompt()])
        await client.all_finished()
        assert client.cached[1] == 20


async def test_they_pass_the_door_and_nobody_pays():
    limits = QueueLimits(requests=3, tokens=100)
    async with running(SimulatedWorker(max_rows=1, budget=8, num_blocks=200), limits=limits) as (
        scheduler,
        _,
    ):
        client = Client(scheduler)
        client.submit(1, [21] * 20, 40, tenant="a")
        await client.until(lambda: 1 in client.cached)
        client.submit(2, [22] * 20, 2, tenant="a")
        scheduler.warm([warm_prompt([n] * 20) for n in range(10)])
        await asyncio.sleep(0)
        assert scheduler.describe().warming == 10
        assert scheduler.door.size == (1, 20)
        client.submit(3, [23] * 20, 2, tenant="a", priority=-1)
        await client.all_finished()
        await ready(scheduler)
        assert len(client.finished) == 3
        assert scheduler.preempted_for[Cause.FAIRNESS] == 0
        assert scheduler.tenants.house.counter < 0
        assert len(scheduler.tenants) == 1
        await settled(scheduler)
        check_idle(scheduler)


async def test_a_prompt_that_never_fits_is_left_out():
    async with running(SimulatedWorker(max_model_len=30)) as (scheduler, _):
        scheduler.warm([warm_prompt([1] * 30), warm_prompt([1] * 20)])
        await ready(scheduler)
        assert await ask(Client(scheduler), 1, [1] * 20) == 16


async def test_more_than_the_cache_holds_is_said():
    scheduler = make_scheduler(SimulatedTransport(SimulatedWorker(num_blocks=8, block_size=4)))
    # The second shares all but one of its blocks with the first.
    scheduler.warm([warm_prompt(), warm_prompt([*PROMPT[:16], 9, 9, 9, 9])])
    with structlog.testing.capture_logs() as logs:
        task = asyncio.create_task(scheduler.run())
        await ready(scheduler)
        assert not [log for log in logs if log["event"] == "warm_prompts_exceed_cache"]
        scheduler.warm([warm_prompt([7] * 12)])
        await ready(scheduler)
    [warning] = [log for log in logs if log["event"] == "warm_prompts_exceed_cache"]
    assert (warning["blocks"], warning["room"]) == (9, 8)
    task.cancel()
