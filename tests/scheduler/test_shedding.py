"""The door: what is refused, why, and whether coming back helps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos.scheduling_pb2 import (
    FINISH_REASON_LENGTH,
    FINISH_REASON_TIMEOUT,
    REFUSAL_REASON_OVER_SHARE,
    REFUSAL_REASON_OVERLOADED,
)
from scheduler.drain import DrainRate, Size
from scheduler.shedding import Door, QueueLimits
from scheduler.tickets import GRACE, Tickets
from tests.scheduler.hand_stepped import Bench
from tests.scheduler.helpers import Client, submit
from tests.scheduler.simulated_worker import SimulatedWorker, answer
from tests.scheduler.test_core import check_idle, running, settled


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_the_rate_counts_only_while_somebody_waits():
    clock = Clock()
    rate = DrainRate(clock)
    assert rate.seconds_for(Size(10, 10)) == 0.0  # not known
    for _ in range(100):
        rate.waits()
        clock.now += 0.1
        rate.started(Size(1, 50))
        rate.empty()
        clock.now += 5.0
    assert rate.seconds_for(Size(10, 10)) == pytest.approx(1.0, rel=0.05)
    assert rate.seconds_for(Size(0, 1000)) == pytest.approx(2.0, rel=0.05)


def test_a_ticket_is_kept_until_it_lapses():
    tickets = Tickets()
    due = tickets.give(("a", b"x"), Size(1, 10), earliest=5.0, seconds=2.0)
    later = tickets.give(("a", b"y"), Size(1, 10), earliest=5.0, seconds=2.0)
    assert (due, later > due + 1.9) == (5.0, True)
    tickets.advance(4.0)
    assert (tickets.reserved.requests, tickets.wait(("a", b"x"), 4.0)) == (0, 1.0)
    tickets.advance(5.0)
    assert tickets.reserved.requests == 1
    tickets.claim(("a", b"x"))
    assert tickets.wait(("a", b"x"), 5.0) is None
    tickets.advance(later + GRACE)
    assert (len(tickets), tickets.reserved.requests) == (0, 0)
    assert tickets.returning < 1.0


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.booleans(), st.floats(0, 4)), max_size=80))
def test_tickets_balance(events):
    tickets, now = Tickets(), 0.0
    for name, claim, passed in events:
        now += passed
        tickets.advance(now)
        key = (name, b"")
        if claim:
            tickets.claim(key)
        else:
            assert tickets.give(key, Size(1, 7), now + 1.0, 0.5) >= now + 1.0
        assert 0 <= tickets.reserved.requests <= len(tickets)
        assert 0 < tickets.returning <= 1
    tickets.advance(now + 1000)
    assert (len(tickets), tickets.reserved) == (0, Size())


def limited(requests=4, tokens=1000):
    return running(SimulatedWorker(max_rows=1, num_blocks=400), limits=QueueLimits(requests, tokens))


async def test_a_full_server_refuses_at_once_and_says_when_to_come_back():
    async with limited() as (scheduler, _):
        client = Client(scheduler)
        for n in range(12):
            client.submit(n, [n], 20, tenant=str(n))
        await client.all_finished()
        assert set(client.refused) >= set(range(6, 12))
        assert {refused.reason for refused in client.refused.values()} == {REFUSAL_REASON_OVERLOADED}
        assert all(refused.retry_after_ms >= 1000 for refused in client.refused.values())
        assert all(client.tokens[n] == answer([n], 20) for n in client.finished)
        assert scheduler.door.size == Size()
        await settled(scheduler)
        check_idle(scheduler)


async def test_one_tenant_leaves_room_for_another():
    async with limited(requests=40) as (scheduler, _):
        client = Client(scheduler)
        for n in range(60):
            client.submit(n, [n % 50], 2, tenant="greedy")
        client.submit(100, [1], 2, tenant="modest")
        await client.all_finished()
        assert {refused.reason for refused in client.refused.values()} == {REFUSAL_REASON_OVER_SHARE}
        assert 100 in client.finished
        assert len(client.finished) > 30


async def test_the_newest_of_the_lowest_priority_gives_way():
    async with limited() as (scheduler, transports):
        client = Client(scheduler)
        client.submit(0, [0], 100)
        await client.until(lambda: client.tokens[0])
        transports[0].stream.hold()
        for n in range(1, 5):
            client.submit(n, [n], 2, tenant=str(n), priority=-(n % 2))
        client.submit(5, [5], 2, priority=-2)
        assert scheduler.door.shed == 1
        transports[0].stream.go_on()
        await client.all_finished()
        assert set(client.refused) == {4}
        assert client.refused[4].reason == REFUSAL_REASON_OVERLOADED


@pytest.mark.parametrize("max_tokens", [3, 200])
async def test_a_request_ends_at_its_deadline_and_its_blocks_are_free(max_tokens):
    async with running(SimulatedWorker(num_blocks=100)) as (scheduler, transports):
        client = Client(scheduler)
        client.submit(0, [1, 2], max_tokens, timeout_ms=50)
        await client.until(lambda: len(client.tokens[0]) >= 3)
        if max_tokens > 3:
            transports[0].stream.hold()
        await client.all_finished()
        late = max_tokens > 3
        assert client.finished[0].reason == (FINISH_REASON_TIMEOUT if late else FINISH_REASON_LENGTH)
        assert client.tokens[0] == answer([1, 2], max_tokens)[: len(client.tokens[0])]
        transports[0].stream.go_on()
        await settled(scheduler)
        check_idle(scheduler)
        assert scheduler.timeouts == late


async def test_deadlines_hold_in_the_queue():
    async with running(SimulatedWorker(max_rows=1, num_blocks=100)) as (scheduler, transports):
        client = Client(scheduler)
        client.submit(0, [1], 50)
        await client.until(lambda: client.tokens[0])
        transports[0].stream.hold()
        client.submit(1, [2], 50, timeout_ms=30)
        await client.until(lambda: 1 in client.finished)
        assert client.finished[1].reason == FINISH_REASON_TIMEOUT
        assert scheduler.describe().waiting == 0
        transports[0].stream.go_on()
        await client.all_finished()
        await settled(scheduler)
        check_idle(scheduler)


async def test_requests_long_done_are_not_kept_until_their_deadlines():
    async with running(SimulatedWorker(num_blocks=100)) as (scheduler, _):
        client = Client(scheduler)
        for n in range(500):
            client.submit(n, [1], 1, timeout_ms=3_600_000)
            if n % 20 == 0:
                await client.all_finished()
        assert len(scheduler._deadlines) < 150
        await client.all_finished()


def test_what_would_come_too_late_is_refused():
    clock = Clock()
    door = Door(QueueLimits(1000, 100_000), clock)
    client = _Asker(door)
    for n in range(20):
        client.enter(n)
        clock.now += 0.1
        client.start(n)  # ten a second
    for n in range(20, 40):
        client.enter(n)
    assert client.refusal(100, timeout_ms=1000).reason == REFUSAL_REASON_OVERLOADED
    assert client.refusal(101, timeout_ms=60_000) is None
    assert client.refusal(102, timeout_ms=1000, priority=-1) is None  # nobody goes before it


class _Asker:
    def __init__(self, door):
        self.door, self.bench, self.requests = door, Bench(), {}

    def enter(self, n):
        request = self.requests[n] = self.bench.add([n % 50] * 10, 5)
        self.door.entered(request)

    def start(self, n):
        self.requests[n].started = True
        self.door.left(self.requests[n])

    def refusal(self, n, **fields):
        return self.door.ask(submit(n, [n % 50] * 10, 5, **fields))


async def test_whoever_comes_back_when_told_is_let_in():
    clock = Clock()
    limits = QueueLimits(6, 1000)
    async with running(SimulatedWorker(max_rows=1), limits=limits, clock=clock) as (scheduler, _):
        client = Client(scheduler)
        for n in range(20):
            client.submit(n, [n, n], 2, tenant=str(n % 4))
        await client.all_finished()
        refused = dict(client.refused)
        assert refused
        for n, refusal in sorted(refused.items(), key=lambda item: item[1].retry_after_ms):
            clock.now = max(clock.now, refusal.retry_after_ms / 1000)
            client.submit(100 + n, [n, n], 2, tenant=str(n % 4))
        await client.all_finished()
        assert len([n for n in refused if 100 + n in client.finished]) >= 7
        assert len(scheduler.door.tickets) == len(client.refused) - len(refused)
