"""Workers that are drained, that leave by themselves, and that come."""

import asyncio

import pytest

from batchyard.errors import UnknownWorker
from protos.packing import pack_i32
from protos.scheduling_pb2 import REFUSAL_REASON_UNAVAILABLE, WarmPrompt
from tests.scheduler.helpers import Client, make_scheduler
from tests.scheduler.simulated_worker import SimulatedTransport, SimulatedWorker, answer
from tests.scheduler.test_core import check_idle, running, settled

REQUESTS = {n: [n, 1, 2] for n in range(12)}  # more than the rows of one worker
LENGTH = 60


async def until(condition, seconds=5):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0)


async def in_the_middle(scheduler):
    """A client most of whose requests run."""
    client = Client(scheduler)
    for n, prompt in REQUESTS.items():
        client.submit(n, prompt, LENGTH)
    await client.until(lambda: sum(len(tokens) > 5 for tokens in client.tokens.values()) >= 8)
    return client


async def all_exact(client):
    await client.all_finished()
    assert client.tokens == {n: answer(prompt, LENGTH) for n, prompt in REQUESTS.items()}


@pytest.mark.parametrize("steps_in_flight", [1, 4])
async def test_a_drained_worker_hands_its_requests_over_at_a_step_edge(steps_in_flight):
    workers = SimulatedWorker(worker_id="a"), SimulatedWorker(worker_id="b")
    async with running(*workers, steps_in_flight=steps_in_flight) as (scheduler, transports):
        client = await in_the_middle(scheduler)
        lane = scheduler.fleet.find("a")
        here = len(lane.batcher.running) + len(lane.waiting)
        sent = lane.tally.steps + lane.steps_in_flight
        lane.drain()
        assert lane.draining
        assert not lane.takes_requests
        async with asyncio.timeout(1):
            assert 0 < await lane.drained() <= here
        assert not lane.connected
        # All that was in flight was answered, and nothing was sent after it.
        assert workers[0].last_step == lane.tally.steps == sent
        assert [worker.draining for worker in scheduler.describe().workers] == [True, False]
        await all_exact(client)
        assert [transport.streams for transport in transports] == [1, 1]


async def test_a_worker_that_does_not_answer_is_let_go_too(monkeypatch):
    monkeypatch.setattr("scheduler.lane._DRAIN_WAIT", 0.01)
    async with running(SimulatedWorker(worker_id="a"), SimulatedWorker()) as (scheduler, transports):
        client = await in_the_middle(scheduler)
        transports[0].stream.hold()
        lane = scheduler.lanes[0]
        await until(lambda: lane.steps_in_flight)
        lane.drain()
        async with asyncio.timeout(1):
            await lane.drained()
        await all_exact(client)


async def test_a_drained_worker_is_not_used_again_but_its_successor_is():
    worker = SimulatedWorker()
    async with running(worker) as (scheduler, transports):
        client = await in_the_middle(scheduler)
        (lane,) = scheduler.lanes
        lane.drain()
        await lane.drained()
        lane.hurry()
        with pytest.raises(TimeoutError):
            await until(lambda: lane.connected, seconds=0.05)
        state = scheduler.describe()
        assert not state.ready
        assert state.waiting == len(client.session.requests)  # they wait for a worker
        worker.worker.epoch += 1000
        lane.hurry()
        await all_exact(client)
        assert transports[0].streams == 2
        assert scheduler.describe().ready
        await settled(scheduler)
        check_idle(scheduler)


async def test_a_drain_can_be_undone():
    async with running(SimulatedWorker()) as (scheduler, _):
        client = await in_the_middle(scheduler)
        (lane,) = scheduler.lanes
        lane.drain()
        lane.drain()  # again changes nothing
        await lane.drained()
        lane.resume()
        await all_exact(client)
        lane.drain()
        assert await lane.drained() == 0


async def test_a_drain_that_is_undone_before_its_end_changes_nothing(monkeypatch):
    monkeypatch.setattr("scheduler.lane._DRAIN_WAIT", 0.02)
    async with running(SimulatedWorker()) as (scheduler, transports):
        client = await in_the_middle(scheduler)
        transports[0].stream.hold()
        (lane,) = scheduler.lanes
        await until(lambda: lane.steps_in_flight)
        lane.drain()
        lane.resume()
        over = asyncio.get_running_loop().time() + 0.04
        await until(lambda: asyncio.get_running_loop().time() > over)
        transports[0].stream.go_on()
        await all_exact(client)
        assert (transports[0].streams, lane.tally.losses) == (1, 0)


async def test_a_worker_that_leaves_is_drained():
    async with running(SimulatedWorker(worker_id="a"), SimulatedWorker()) as (scheduler, transports):
        client = await in_the_middle(scheduler)
        transports[0].stream.leave()
        await until(lambda: not scheduler.lanes[0].connected)
        assert scheduler.lanes[0].draining
        await all_exact(client)
        assert transports[0].streams == 1


async def test_an_idle_worker_that_leaves_is_let_go_at_once():
    async with running(SimulatedWorker()) as (scheduler, transports):
        transports[0].stream.leave()
        await until(lambda: transports[0].stream.broken)  # closed
        assert not scheduler.describe().ready


async def test_all_workers_are_restarted_one_after_another():
    workers = [SimulatedWorker(worker_id=name) for name in "abc"]
    async with running(*workers) as (scheduler, transports):
        client = await in_the_middle(scheduler)
        for lane, worker, transport in zip(scheduler.lanes, workers, transports, strict=True):
            transport.stream.leave()
            await until(lambda lane=lane: not lane.connected)
            worker.worker.epoch += 1000
            lane.hurry()
            await until(lambda lane=lane: lane.connected)
        await all_exact(client)
        assert [transport.streams for transport in transports] == [2, 2, 2]
        await settled(scheduler)
        check_idle(scheduler)


async def test_a_worker_that_comes_gets_work_and_one_that_is_removed_gives_it_back():
    async with running(SimulatedWorker(worker_id="a")) as (scheduler, _):
        client = await in_the_middle(scheduler)
        newcomer = SimulatedTransport(SimulatedWorker(worker_id="b"), "b:1")
        lane = scheduler.fleet.add(newcomer)
        await until(lambda: newcomer.simulated.rows)
        scheduler.fleet.remove(lane)
        assert [lane.name for lane in scheduler.lanes] == ["a"]
        await all_exact(client)
        assert newcomer.closed
        await settled(scheduler)
        check_idle(scheduler)


async def test_a_warm_prompt_stays_with_its_worker_when_others_come():
    async with running(SimulatedWorker(worker_id="a", max_rows=1)) as (scheduler, transports):
        client = Client(scheduler)
        client.submit(1, [1], 200)
        client.submit(2, [2], 5)
        await client.until(lambda: client.tokens[1])
        transports[0].stream.hold()
        scheduler.warm([WarmPrompt(tokens=pack_i32([7] * 9))])
        lane = scheduler.lanes[0]
        await until(lambda: len(lane.waiting) == 2)
        newcomer = SimulatedTransport(SimulatedWorker(worker_id="b"), "b:1")
        scheduler.fleet.add(newcomer)
        await until(lambda: not scheduler.describe().warming)  # the newcomer has it
        await client.until(lambda: 2 in client.finished)  # there
        assert len(lane.waiting) == 1
        transports[0].stream.go_on()
        await client.all_finished()
        assert client.tokens == {1: answer([1], 200), 2: answer([2], 5)}


async def test_a_worker_under_two_addresses_is_used_once():
    worker = SimulatedWorker()
    first, second = SimulatedTransport(worker, "a:1"), SimulatedTransport(worker, "b:1")
    scheduler = make_scheduler(first, second)
    task = asyncio.create_task(scheduler.run())
    await until(lambda: any(lane.connected for lane in scheduler.lanes))
    await all_exact(await in_the_middle(scheduler))
    assert first.streams + second.streams == 1
    task.cancel()
    await asyncio.wait([task])


async def test_requests_wait_for_a_worker_that_went_away_just_now(monkeypatch):
    async with running(SimulatedWorker()) as (scheduler, transports):
        client = Client(scheduler)
        transports[0].lost = True
        transports[0].stream.break_off()
        await until(lambda: not scheduler.lanes[0].connected)
        client.submit(1, [1], 5)
        monkeypatch.setattr("scheduler.fleet._ABSENCE", 0.0)
        monkeypatch.setattr("scheduler.core._SETTLING_S", 0.0)
        client.submit(2, [2], 5)
        assert client.session.outbox.get_nowait().refused[0].reason == REFUSAL_REASON_UNAVAILABLE
        del client.tokens[2]
        transports[0].lost = False
        scheduler.lanes[0].hurry()
        await client.all_finished()
        assert client.tokens == {1: answer([1], 5)}


async def test_workers_are_found_by_id_or_address():
    workers = [SimulatedWorker(worker_id=name) for name in ("a", "twin", "twin")]
    transports = [SimulatedTransport(worker, f"host-{n}:1") for n, worker in enumerate(workers)]
    scheduler = make_scheduler(*transports, SimulatedTransport(SimulatedWorker(), "never:1"))
    scheduler.lanes[3].transport.lost = True
    task = asyncio.create_task(scheduler.run())
    await until(lambda: all(lane.connected for lane in scheduler.lanes[:3]))
    assert scheduler.fleet.find("a") is scheduler.fleet.find("host-0:1") is scheduler.lanes[0]
    with pytest.raises(UnknownWorker, match=r"several workers.*twin at host-1:1, twin at host-2:1"):
        scheduler.fleet.find("twin")
    for name in ("nobody", "never:1"):
        with pytest.raises(UnknownWorker, match=f"'{name}' is no worker"):
            scheduler.fleet.find(name)
    task.cancel()
    await asyncio.wait([task])
