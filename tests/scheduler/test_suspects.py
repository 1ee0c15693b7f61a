"""Who pays for lost workers: nobody but a request that kills them."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchyard.errors import WorkerLost, WorkerTaken
from bench.simulation import virtual_time
from protos.packing import pack_i32, unpack_i32
from protos.scheduling_pb2 import FINISH_REASON_FAILED, FINISH_REASON_LENGTH
from scheduler.breaker import MOST, SHORTEST
from scheduler.suspects import TRIED_FROM
from tests.scheduler.helpers import Client, make_scheduler
from tests.scheduler.mortal_worker import POISON, MortalTransport, MortalWorker
from tests.scheduler.simulated_worker import answer


class Cell:
    """A scheduler, its workers, and a client."""

    def __init__(self, *workers, **options):
        self.transports = [MortalTransport(worker) for worker in workers]
        self.scheduler = make_scheduler(*self.transports, **options)
        self.client = Client(self.scheduler)
        self.asked = {}

    def ask(self, prompt, max_tokens):
        self.asked[len(self.asked)] = prompt, max_tokens
        self.client.submit(len(self.asked) - 1, prompt, max_tokens)

    @property
    def deaths(self):
        return sum(transport.simulated.deaths for transport in self.transports)

    async def finish(self):
        """Until all have ended and nothing is left of them."""
        await self.client.until(lambda: len(self.client.finished) == len(self.asked), seconds=1000)
        while not all(lane.connected and lane.idle for lane in self.scheduler.lanes):
            await asyncio.sleep(0.01)
        assert len(self.scheduler.suspects.waiting) == 0
        self.scheduler.suspects.answered()
        assert len(self.scheduler.suspects) == 0
        state = self.scheduler.describe()
        assert (state.waiting, state.running) == (0, 0)
        for lane in self.scheduler.lanes:
            lane.batcher.pool.check()
            assert lane.batcher.pool.held == 0
            assert not self.scheduler.suspects.sets_apart(lane)

    def check(self):
        """That each request has its very own answer, but poison, which has a beginning of it and an error."""
        for id, (prompt, max_tokens) in self.asked.items():
            finished, tokens = self.client.finished[id], self.client.tokens[id]
            expected = answer(prompt, max_tokens)
            if prompt[0] == POISON and self.transports[0].simulated.fatal_at < len(prompt) + max_tokens - 1:
                assert finished.reason == FINISH_REASON_FAILED
                assert "3 workers were lost at the same place" in finished.error
                assert tokens == expected[: len(tokens)]
            else:
                assert finished.reason == FINISH_REASON_LENGTH, finished
                assert tokens == expected


@asynccontextmanager
async def cell_of(*workers, **options):
    cell = Cell(*workers, **options)
    task = asyncio.create_task(cell.scheduler.run())
    while not all(lane.connected for lane in cell.scheduler.lanes):
        await asyncio.sleep(0)
    try:
        yield cell
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


PROMPTS = st.lists(st.integers(0, POISON - 1), min_size=1, max_size=40)
REQUESTS = st.lists(st.tuples(PROMPTS, st.integers(1, 30)), min_size=1, max_size=12)
KILLS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 2)), max_size=12)


async def kill_by_hand(cell, kills):
    """Never a worker on which a request is tried: then it is what a worker that dies is taken for."""
    for turns, number in kills:
        for _ in range(turns):
            await asyncio.sleep(0)
        if turns > 50:  # now and then, let workers come back
            await asyncio.sleep(0.15)
        number %= len(cell.transports)
        if not cell.scheduler.suspects.sets_apart(cell.scheduler.lanes[number]):
            cell.transports[number].kill()


async def live_through(num_workers, shape, requests, kills):
    async with cell_of(*(MortalWorker(**shape) for _ in range(num_workers))) as cell:
        for prompt, max_tokens in requests:
            cell.ask(prompt, max_tokens)
        await asyncio.gather(kill_by_hand(cell, kills), cell.finish())
        cell.check()
        return cell


@given(num_workers=st.integers(1, 3), blocks=st.integers(20, 60), requests=REQUESTS, kills=KILLS)
@settings(max_examples=60)
def test_nobody_fails_by_accidents(num_workers, blocks, requests, kills):
    cell = virtual_time.run(live_through(num_workers, {"num_blocks": blocks}, requests, kills))
    assert cell.scheduler.suspects.failed == 0


@given(
    num_workers=st.integers(1, 3),
    fatal_at=st.integers(0, 50),
    host=st.sampled_from([0, 40]),
    requests=REQUESTS,
    poison=st.lists(st.tuples(PROMPTS, st.integers(1, 20), st.integers(0, 12)), min_size=1, max_size=3),
    kills=KILLS,
)
@settings(max_examples=100)
def test_poison_fails_alone(num_workers, fatal_at, host, requests, poison, kills):
    for prompt, max_tokens, place in poison:
        requests.insert(place, ([POISON, *prompt], max_tokens))
    shape = {"fatal_at": fatal_at, "num_blocks": 40, "num_host_blocks": host}
    cell = virtual_time.run(live_through(num_workers, shape, requests, kills))
    deadly = sum(fatal_at < 1 + len(prompt) + max_tokens - 1 for prompt, max_tokens, _ in poison)
    assert cell.scheduler.suspects.failed == deadly
    if deadly == 1 and not kills:
        assert cell.deaths == TRIED_FROM + 1


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)


def test_the_last_trial_is_on_another_worker():
    """One sick worker, on which every step fails, costs nobody an answer."""

    async def main():
        async with cell_of(MortalWorker(), MortalWorker()) as cell:
            sick = cell.transports[0].simulated
            sick.execute = lambda batch: (_ for _ in ()).throw(WorkerLost("sick"))
            for n in range(12):
                cell.ask([n, 1, 2], 20)
            await cell.client.until(lambda: len(cell.client.finished) == len(cell.asked), seconds=1000)
            cell.check()
            assert cell.scheduler.suspects.failed == 0

    virtual_time.run(main())


def test_other_rows_are_paused_for_a_trial_and_go_on():
    async def main():
        async with cell_of(MortalWorker(fatal_at=1), MortalWorker(fatal_at=1)) as cell:
            for n in range(6):
                cell.ask([n, 1, 2], 200)
            await cell.client.until(lambda: all(len(cell.client.tokens[n]) > 5 for n in range(6)))
            cell.ask([POISON], 5)
            await cell.finish()
            cell.check()
            assert cell.deaths == 3
            assert cell.scheduler.suspects.failed == 1

    virtual_time.run(main())


def test_rows_without_numbers_are_blamed_and_no_others():
    async def main():
        async with cell_of(MortalWorker(fatal_at=1000)) as cell:
            worker = cell.transports[0].simulated
            sane = worker.execute
            suspected = set()

            def execute(batch):
                suspected.update(r.id for r in cell.client.session.requests.values() if r.suspicion)
                result = sane(batch)
                tokens = unpack_i32(result.tokens).copy()
                for i, row in enumerate(unpack_i32(result.rows).tolist()):
                    if worker.rows[row].tokens[0] == POISON:
                        tokens[i] = -1
                result.tokens = pack_i32(tokens)
                return result

            worker.execute = execute
            for n in range(4):
                cell.ask([n, 1, 2], 30)
            cell.ask([POISON], 5)
            await cell.client.all_finished()
            assert suspected == {4}
            assert cell.scheduler.lanes[0].tally.losses == 3
            assert cell.client.finished[4].reason == FINISH_REASON_FAILED
            assert all(cell.client.tokens[n] == answer([n, 1, 2], 30) for n in range(4))

    virtual_time.run(main())


def test_being_taken_over_is_no_loss():
    async def main():
        async with cell_of(MortalWorker()) as cell:
            cell.ask([1, 2, 3], 100)
            for n in range(5):
                await cell.client.until(lambda n=n: len(cell.client.tokens[0]) > 10 * n)
                cell.transports[0].stream.break_off(WorkerTaken("another"))
            await cell.finish()
            cell.check()
            assert cell.scheduler.lanes[0].tally.losses == 0
            assert cell.scheduler.lanes[0].breaker.opened == 0

    virtual_time.run(main())


def test_a_worker_that_is_drained_during_a_trial_accuses_nobody():
    async def main():
        async with cell_of(MortalWorker(fatal_at=30), MortalWorker(fatal_at=30)) as cell:
            for transport in cell.transports:
                transport.step_seconds = 0.01
            cell.ask([POISON, 1], 60)
            cell.ask([1, 2], 200)
            suspects = cell.scheduler.suspects
            await until(lambda: any(map(suspects.sets_apart, cell.scheduler.lanes)))
            (tried,) = filter(suspects.sets_apart, cell.scheduler.lanes)
            await until(lambda: tried.steps_in_flight)
            tried.drain()
            await tried.drained()  # though its process died over it
            assert (suspects.failed, sum(lane.tally.losses for lane in cell.scheduler.lanes)) == (
                0,
                TRIED_FROM,
            )
            tried.resume()
            await cell.finish()
            cell.check()
            assert sum(lane.tally.losses for lane in cell.scheduler.lanes) == TRIED_FROM + 1

    virtual_time.run(main())


def test_suspects_that_wait_can_be_cancelled():
    async def main():
        async with cell_of(MortalWorker(fatal_at=3)) as cell:
            for n in range(3):
                cell.ask([POISON, n], 10)
            await until(lambda: len(cell.scheduler.suspects.waiting) > 1)
            assert cell.scheduler.describe().waiting > 1
            for n in range(3):
                cell.scheduler.cancel(cell.client.session, n)
            assert len(cell.scheduler.suspects.waiting) == 0
            cell.asked.clear()
            await cell.finish()

    virtual_time.run(main())


def test_a_worker_that_flaps_is_left_alone_and_then_probed():
    async def main():
        async with cell_of(MortalWorker(), MortalWorker(), steps_in_flight=1) as cell:
            flapping = cell.scheduler.lanes[0]
            for _ in range(MOST):
                await until(lambda: flapping.connected)
                cell.transports[0].kill()
                await until(lambda: not flapping.connected)
            lost_at = asyncio.get_running_loop().time()
            await until(lambda: flapping.connected)
            assert asyncio.get_running_loop().time() - lost_at > 0.99 * SHORTEST
            assert flapping.breaker.is_probing
            for n in range(20):
                cell.ask([n, 1, 2], 100)
            most = 0
            while flapping.breaker.is_probing:
                await cell.client.take()
                most = max(most, flapping.rows_taken if flapping.breaker.is_probing else 0)
            assert most == 1
            for n in range(20, 40):
                cell.ask([n, 1, 2], 100)
            await cell.client.until(lambda: flapping.rows_taken > 1)
            await cell.finish()
            cell.check()

    virtual_time.run(main())
