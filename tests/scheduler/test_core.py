"""The whole scheduler, with simulated workers in the same process."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from protos.scheduling_pb2 import (
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    REFUSAL_REASON_INVALID,
    REFUSAL_REASON_UNAVAILABLE,
)
from tests.scheduler.helpers import Client, make_scheduler
from tests.scheduler.simulated_worker import SimulatedTransport, SimulatedWorker, answer


@asynccontextmanager
async def running(*workers, **options):
    transports = [SimulatedTransport(worker) for worker in workers]
    scheduler = make_scheduler(*transports, **options)
    task = asyncio.create_task(scheduler.run())
    async with asyncio.timeout(5):
        while not all(lane.connected for lane in scheduler.lanes):
            await asyncio.sleep(0)
    try:
        yield scheduler, transports
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def settled(scheduler):
    """Until nothing is in flight and no row is taken."""
    async with asyncio.timeout(5):
        while any(
            lane.steps_in_flight or (lane.batcher and lane.batcher.rows.taken) for lane in scheduler.lanes
        ):
            await asyncio.sleep(0)


def check_idle(scheduler):
    state = scheduler.describe()
    assert (state.waiting, state.running) == (0, 0)
    for lane, worker in zip(scheduler.lanes, state.workers, strict=True):
        assert (worker.rows, worker.held_blocks) == (0, 0)
        assert worker.free_blocks + worker.cached_blocks == worker.num_blocks
        lane.batcher.pool.check()
        assert len(lane.waiting) == 0


@pytest.mark.parametrize("num_host_blocks", [0, 60])
@pytest.mark.parametrize("steps_in_flight", [1, 2, 4])
async def test_many_requests_at_once(steps_in_flight, num_host_blocks):
    worker = SimulatedWorker(num_blocks=24, num_host_blocks=num_host_blocks)
    async with running(worker, steps_in_flight=steps_in_flight) as (scheduler, _):
        client = Client(scheduler)
        prompts = {n: [n % 7] * (1 + n % 13) for n in range(40)}
        for n, prompt in prompts.items():
            client.submit(n, prompt, 1 + n % 20)
        await client.all_finished()
        assert client.tokens == {n: answer(prompt, 1 + n % 20) for n, prompt in prompts.items()}
        assert {f.reason for f in client.finished.values()} == {FINISH_REASON_LENGTH}
        await settled(scheduler)
        check_idle(scheduler)


async def test_one_message_per_step_whatever_the_number_of_requests():
    async with running(SimulatedWorker(budget=64)) as (scheduler, _):
        client = Client(scheduler)
        for n in range(8):
            client.submit(n, [n], 10)
        await client.all_finished()
        assert client.messages == 10


async def test_a_stop_token_ends_the_request_and_is_delivered():
    stop = answer([1, 2], 10)[3]
    async with running(SimulatedWorker()) as (scheduler, _):
        client = Client(scheduler)
        client.submit(1, [1, 2], 10, {stop})
        await client.all_finished()
        assert client.finished[1].reason == FINISH_REASON_STOP
        assert client.finished[1].stop_token == stop
        assert client.tokens[1] == answer([1, 2], 10, {stop})


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "reason"),
    [
        ([], 5, "the prompt is empty"),
        ([1], 0, "nothing is left to generate"),
        ([1] * 60, 60, "maximum context length is 100 tokens. However, you requested 120 tokens"),
        ([1] * 40, 50, "needs 23 cache blocks"),
        ([999], 5, "token ids must be between 0 and 49"),
    ],
)
async def test_what_can_never_run_is_refused_at_once(prompt, max_tokens, reason):
    async with running(SimulatedWorker(num_blocks=20, max_model_len=100)) as (scheduler, _):
        client = Client(scheduler)
        client.submit(1, prompt, max_tokens)
        await client.all_finished()
        assert client.refused[1].reason == REFUSAL_REASON_INVALID
        assert reason in client.refused[1].message
        check_idle(scheduler)


async def test_without_a_worker_requests_are_refused_as_unavailable():
    scheduler = make_scheduler(SimulatedTransport(SimulatedWorker()))
    client = Client(scheduler)
    client.submit(1, [1], 5)
    await client.all_finished()
    assert client.refused[1].reason == REFUSAL_REASON_UNAVAILABLE
    assert not scheduler.describe().ready


async def test_cancelled_requests_free_their_rows_within_a_step():
    async with running(SimulatedWorker(max_rows=4, num_blocks=128)) as (scheduler, _):
        client = Client(scheduler)
        for n in range(8):  # four run, four wait
            client.submit(n, [n, n, n], 100)
        await client.until(lambda: all(len(client.tokens[n]) > 3 for n in range(4)))
        sent = scheduler.lanes[0].tally.steps + scheduler.lanes[0].steps_in_flight
        for n in range(8):
            scheduler.cancel(client.session, n)
        scheduler.cancel(client.session, 12345)
        await settled(scheduler)
        assert scheduler.lanes[0].tally.steps <= sent + 1  # which tells the worker
        check_idle(scheduler)


async def test_a_gateway_that_goes_away_takes_its_requests_along_and_no_others():
    async with running(SimulatedWorker()) as (scheduler, transports):
        gone, stays = Client(scheduler), Client(scheduler)
        for n in range(3):
            gone.submit(n, [1, 2, n], 200)
            stays.submit(n, [5, 6, n], 30)
        await gone.until(lambda: len(gone.tokens[0]) > 2)
        scheduler.close(gone.session)
        await stays.all_finished()
        assert stays.tokens == {n: answer([5, 6, n], 30) for n in range(3)}
        await settled(scheduler)
        check_idle(scheduler)
        assert not transports[0].simulated.rows


async def test_a_lost_worker_comes_back_and_no_token_is_lost():
    async with running(SimulatedWorker()) as (scheduler, transports):
        client = Client(scheduler)
        for n in range(6):
            client.submit(n, [n, 1, 2], 40)
        await client.until(lambda: len(client.tokens[0]) > 10)
        transports[0].stream.break_off()
        await client.all_finished()
        assert transports[0].streams == 2
        assert client.tokens == {n: answer([n, 1, 2], 40) for n in range(6)}
        await settled(scheduler)
        check_idle(scheduler)


async def evicted_to_host(scheduler):
    """A client whose first prompts the device no longer has."""
    client = Client(scheduler)
    for n in range(6):
        client.submit(n, [n] * 40, 2)
        await client.until(lambda n=n: n in client.finished)
    return client


async def test_blocks_come_back_from_the_host_and_count_as_cached():
    async with running(SimulatedWorker(num_blocks=24, num_host_blocks=60)) as (scheduler, _):
        client = await evicted_to_host(scheduler)
        client.submit(10, [0] * 40, 2)
        await client.all_finished()
        assert client.cached[10] == 36
        assert client.tokens[10] == answer([0] * 40, 2)
        assert scheduler.hits.host > 0


@pytest.mark.parametrize("how", ["cancelled", "lost"])
async def test_a_request_that_waits_for_the_host(how):
    async with running(SimulatedWorker(num_blocks=24, num_host_blocks=60)) as (scheduler, transports):
        client = await evicted_to_host(scheduler)
        await settled(scheduler)
        stream = transports[0].stream
        stream.hold_loads()
        client.submit(10, [0] * 40, 2)
        lane = scheduler.lanes[0]
        async with asyncio.timeout(5):
            while not lane.batcher.entrance.aside:
                await asyncio.sleep(0)
        assert scheduler.describe().waiting == 1
        if how == "cancelled":
            scheduler.cancel(client.session, 10)
            assert scheduler.describe().waiting == 0
            stream.go_on_loading()
        else:
            stream.break_off()
            await client.all_finished()
            assert client.tokens[10] == answer([0] * 40, 2)
        async with asyncio.timeout(5):
            while not lane.batcher or lane.batcher.pool.held:
                await asyncio.sleep(0)
        check_idle(scheduler)


async def test_a_load_that_never_ends_costs_the_worker_its_stream(monkeypatch):
    monkeypatch.setattr("scheduler.watch.LOOK_EVERY", 0.01)
    monkeypatch.setattr("scheduler.watch.MOVES_LIMIT", 0.1)
    monkeypatch.setattr("scheduler.patience.FLOOR", 0.1)
    async with running(SimulatedWorker(num_blocks=24, num_host_blocks=60)) as (scheduler, transports):
        client = await evicted_to_host(scheduler)
        await settled(scheduler)
        transports[0].stream.hold_loads()
        client.submit(10, [0] * 40, 2)
        await client.all_finished()
        assert client.tokens[10] == answer([0] * 40, 2)
        assert scheduler.lanes[0].tally.losses == 1
        await settled(scheduler)
        check_idle(scheduler)


async def test_a_worker_whose_steps_grow_longer_is_not_lost(monkeypatch):
    """Ten times, from one step to the next."""
    monkeypatch.setattr("scheduler.watch.LOOK_EVERY", 0.01)
    monkeypatch.setattr("scheduler.patience.FLOOR", 0.03)
    async with running(SimulatedWorker(), steps_in_flight=1) as (scheduler, transports):
        transports[0].stream.step_seconds = 0.01
        client = Client(scheduler)
        client.submit(1, [1, 2, 3], 20)
        await client.until(lambda: len(client.tokens[1]) > 10)
        transports[0].stream.step_seconds = 0.1
        await client.all_finished()
        assert scheduler.lanes[0].tally.losses == 0


async def test_more_answers_than_memory_holds_take_turns():
    """As a large `n` asks for them: one alone fills most of the cache."""
    async with running(SimulatedWorker(num_blocks=24, max_model_len=96)) as (scheduler, _):
        client = Client(scheduler)
        for n in range(40):
            client.submit(n, [1] * 10, 80)
        await client.all_finished()
        assert {tuple(tokens) for tokens in client.tokens.values()} == {tuple(answer([1] * 10, 80))}
        assert not client.refused
        await settled(scheduler)
        check_idle(scheduler)


async def test_requests_of_a_lost_worker_go_on_elsewhere():
    async with running(SimulatedWorker(), SimulatedWorker()) as (scheduler, transports):
        client = Client(scheduler)
        for n in range(8):
            client.submit(n, [n, 1, 2], 60)
        await client.until(lambda: all(len(client.tokens[n]) > 5 for n in range(8)))
        assert all(transport.simulated.rows for transport in transports)
        transports[0].lost = True
        transports[0].stream.break_off()
        await client.all_finished()
        assert client.tokens == {n: answer([n, 1, 2], 60) for n in range(8)}
        assert transports[0].streams == 1


async def test_a_worker_that_talks_nonsense_is_dropped():
    worker = SimulatedWorker()
    async with running(worker) as (scheduler, transports):
        client = Client(scheduler)
        client.submit(1, [1, 2, 3], 30)
        await client.until(lambda: len(client.tokens[1]) > 3)
        worker.execute = _once_wrong_step(worker, worker.execute)
        await client.all_finished()
        assert client.tokens[1] == answer([1, 2, 3], 30)
        assert transports[0].streams == 2


def _once_wrong_step(worker, sane):
    def execute(batch):
        worker.execute = sane
        result = sane(batch)
        result.step += 100
        return result

    return execute


async def test_an_overdue_step_means_a_lost_worker(monkeypatch):
    monkeypatch.setattr("scheduler.watch.LOOK_EVERY", 0.01)
    async with running(SimulatedWorker(), step_timeout=0.05) as (scheduler, transports):
        client = Client(scheduler)
        client.submit(1, [1, 2, 3], 30)
        await client.until(lambda: len(client.tokens[1]) > 3)
        transports[0].stream.hold()
        await client.all_finished()
        assert transports[0].streams == 2
        assert client.tokens[1] == answer([1, 2, 3], 30)


async def test_load_spreads_over_workers_and_prefixes_stick():
    async with running(SimulatedWorker(budget=64), SimulatedWorker(budget=64)) as (scheduler, transports):
        client = Client(scheduler)
        for n in range(8):
            client.submit(n, [n] * 12, 10)
        await client.all_finished()
        assert all(t.simulated.computed_tokens > 0 for t in transports)
        for n in range(8):
            client.submit(100 + n, [*[n] * 12, 1, 2], 2)
            await client.until(lambda n=n: 100 + n in client.finished)
            assert client.cached[100 + n] == 12


async def test_prefix_caching_can_be_off():
    async with running(SimulatedWorker(), caching=False) as (scheduler, _):
        client = Client(scheduler)
        for n in range(2):
            client.submit(n, [1] * 12, 3)
            await client.until(lambda n=n: n in client.finished)
        assert client.cached[1] == 0
        await settled(scheduler)
        assert scheduler.describe().workers[0].cached_blocks == 0
