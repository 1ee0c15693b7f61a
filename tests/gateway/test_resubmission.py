"""Requests that outlive their scheduler: what the next one is told of them, and what their readers see."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from batchyard.errors import SchedulerLost
from gateway.link import SchedulerLink
from gateway.subscription import Subscription, Update
from protos.packing import pack_i32, unpack_i32
from protos.sampling_pb2 import Logprobs, Sampling
from protos.scheduling_pb2 import (
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    FINISH_REASON_TIMEOUT,
    SchedulerMessage,
    Started,
    Submit,
)
from tests.gateway.fake_scheduler import (
    FakeScheduler,
    connected,
    deadline,
    ending,
    prompt_logprobs,
    serving,
    token_logprobs,
    tokens,
)

PROMPT = [7, 8, 9]


@pytest.fixture(autouse=True)
async def in_time() -> AsyncIterator[None]:
    with deadline():
        yield


@asynccontextmanager
async def standing_by(
    folder: Path, *schedulers: FakeScheduler, wait_s: float = 30.0
) -> AsyncIterator[SchedulerLink]:
    """A link to all of them."""
    async with AsyncExitStack() as stack:
        addresses = [
            await stack.enter_async_context(serving(scheduler, folder / str(n)))
            for n, scheduler in enumerate(schedulers)
        ]
        yield await stack.enter_async_context(SchedulerLink(addresses, wait_s=wait_s))


def request(max_tokens: int = 10, stop_ids: Sequence[int] = (), **fields: Any) -> Submit:
    timeout_ms = fields.pop("timeout_ms", 0)
    return Submit(
        tokens=pack_i32(PROMPT),
        prompt_len=len(PROMPT),
        max_tokens=max_tokens,
        sampling=Sampling(stop_token_ids=pack_i32(stop_ids), **fields),
        timeout_ms=timeout_ms,
    )


async def heard(scheduler: FakeScheduler, count: int) -> Submit:
    """The last of so many submits."""
    await scheduler.hear(lambda: len(scheduler.submits) == count)
    return scheduler.submits[-1]


async def read(subscription: Subscription, count: int | None = None) -> Update:
    """So many tokens, or all that are left, with what else came, as one update."""
    whole = Update()
    async for update in subscription:
        whole.token_ids += update.token_ids
        whole.logprobs += update.logprobs
        whole.prompt_logprobs += update.prompt_logprobs
        whole.cached_tokens += update.cached_tokens
        whole.away += update.away
        whole.finished = update.finished
        if len(whole.token_ids) == count:
            break
    return whole


async def test_the_next_scheduler_gets_the_prompt_and_the_answer_so_far(tmp_path: Path) -> None:
    first, second = FakeScheduler(fence=1), FakeScheduler(fence=2)
    scores = [Logprobs(logprob=-float(at)) for at in range(5)]
    async with SchedulerLink([f"unix:{tmp_path}/s"]) as link:
        async with serving(first, tmp_path / "s"):
            subscription = link.submit(request(logprobs=0, prompt_logprobs=0))
            sent = await heard(first, 1)
            assert not sent.accepted
            first.send(SchedulerMessage(prompt_logprobs=[prompt_logprobs(sent.id, 1, scores[:2])]))
            first.send(SchedulerMessage(started=[Started(id=sent.id, cached_tokens=16)]))
            for token in (3, 4):
                told = [token_logprobs(sent.id, scores[token])]
                first.send(tokens((sent.id, [token]), logprobs=told))
            before = await read(subscription, 2)
        async with serving(second, tmp_path / "s"):
            again = await heard(second, 1)
            assert unpack_i32(again.tokens).tolist() == [*PROMPT, 3, 4]
            assert (again.prompt_len, again.max_tokens, again.accepted) == (3, 10, True)
            assert again.sampling.HasField("logprobs")
            assert not again.sampling.HasField("prompt_logprobs")
            second.send(SchedulerMessage(started=[Started(id=again.id, cached_tokens=4096)]))
            told = [token_logprobs(again.id, scores[0])]
            second.send(tokens((again.id, [0]), logprobs=told))
            second.send(ending(again.id, [], FINISH_REASON_LENGTH))
            after = await read(subscription)
    assert (before.token_ids, before.logprobs, before.prompt_logprobs) == ([3, 4], scores[3:], scores[:2])
    assert before.cached_tokens == 16
    # It came before there was a scheduler, and was left by one; each time is told of once.
    assert [len(before.away), len(after.away)] == [1, 1]
    assert all(start <= end for start, end in before.away + after.away)
    assert (after.token_ids, after.logprobs, after.cached_tokens) == ([0], scores[:1], 0)


async def test_a_prompt_half_scored_is_scored_once(tmp_path: Path) -> None:
    first, second = FakeScheduler(fence=1), FakeScheduler(fence=2)
    scores = [Logprobs(logprob=-float(at)) for at in range(3)]
    async with SchedulerLink([f"unix:{tmp_path}/s"]) as link:
        async with serving(first, tmp_path / "s"):
            subscription = link.submit(request(prompt_logprobs=0))
            sent = await heard(first, 1)
            first.send(SchedulerMessage(prompt_logprobs=[prompt_logprobs(sent.id, 1, scores[:1])]))
            assert (await anext(subscription)).prompt_logprobs == scores[:1]
        async with serving(second, tmp_path / "s"):
            again = await heard(second, 1)
            assert again.sampling.HasField("prompt_logprobs")
            second.send(SchedulerMessage(prompt_logprobs=[prompt_logprobs(sent.id, 1, scores[:2])]))
            second.send(ending(again.id, [5], FINISH_REASON_LENGTH))
            assert (await read(subscription)).prompt_logprobs == scores[1:2]


async def test_a_higher_fence_takes_the_requests_from_a_scheduler_that_hangs(tmp_path: Path) -> None:
    old, new = FakeScheduler(fence=5), FakeScheduler(fence=6, active=False)
    async with standing_by(tmp_path, old, new) as link:
        one, two = link.submit(request()), link.submit(request())
        await heard(old, 2)
        old.send(tokens((1, [4]), (2, [14])))
        assert [(await anext(each)).token_ids for each in (one, two)] == [[4], [14]]
        link.submit(request()).close()
        new.active.set()
        assert unpack_i32((await heard(new, 2)).tokens).tolist() == [*PROMPT, 14]
        old.send(tokens((1, [99])))  # it has not heard yet
        new.send(ending(1, [5], FINISH_REASON_LENGTH))
        new.send(ending(2, [15], FINISH_REASON_LENGTH))
        assert [(await read(each)).token_ids for each in (one, two)] == [[5], [15]]
        assert link.num_live == 0


async def test_who_is_outranked_gets_no_requests(tmp_path: Path) -> None:
    old, new = FakeScheduler(fence=5, active=False), FakeScheduler(fence=6)
    async with standing_by(tmp_path, old, new) as link:
        await link.wait_connected()
        old.active.set()
        subscription = link.submit(request())
        await heard(new, 1)
        new.hang_up()
        await heard(new, 2)
        new.send(ending(1, [5], FINISH_REASON_LENGTH))
        assert (await read(subscription)).token_ids == [5]
    assert old.submits == []


async def test_requests_that_come_while_there_is_no_scheduler_wait_for_one(tmp_path: Path) -> None:
    scheduler = FakeScheduler()
    async with SchedulerLink([f"unix:{tmp_path}/s"]) as link:
        subscription = link.submit(request(timeout_ms=8000))
        link.submit(request()).close()
        async with serving(scheduler, tmp_path / "s"):
            sent = await heard(scheduler, 1)
            assert not sent.accepted
            assert 0 < sent.timeout_ms < 8000
            scheduler.send(ending(sent.id, [5], FINISH_REASON_LENGTH))
            assert (await read(subscription)).token_ids == [5]


async def test_no_scheduler_comes_in_time(tmp_path: Path) -> None:
    scheduler = FakeScheduler()
    async with connected(scheduler, tmp_path / "s", wait_s=0.1) as link:
        subscription = link.submit(request())
        await heard(scheduler, 1)
        scheduler.send(tokens((1, [5])))
        assert (await anext(subscription)).token_ids == [5]
        scheduler.active.clear()
        scheduler.hang_up()
        with pytest.raises(SchedulerLost, match="lost the scheduler"):
            await anext(subscription)
        with pytest.raises(SchedulerLost):
            await anext(link.submit(request()))
        with pytest.raises(SchedulerLost):
            await link.describe()
        scheduler.active.set()
        await link.wait_connected()
        await link.describe()


@pytest.mark.parametrize(
    ("asked", "answered", "reason"),
    [
        (request(max_tokens=2), [4, 5], FINISH_REASON_LENGTH),
        (request(stop_ids=[5]), [4, 5], FINISH_REASON_STOP),
        (request(timeout_ms=100), [4], FINISH_REASON_TIMEOUT),
    ],
)
async def test_what_needs_no_scheduler_to_end_ends_without(
    tmp_path: Path, asked: Submit, answered: list[int], reason: int
) -> None:
    scheduler = FakeScheduler()
    async with connected(scheduler, tmp_path / "s") as link:
        subscription = link.submit(asked)
        await heard(scheduler, 1)
        scheduler.send(tokens((1, answered)))
        await read(subscription, len(answered))
        scheduler.active.clear()
        scheduler.hang_up()
        rest = await read(subscription)
        assert rest.finished is not None
        assert (rest.token_ids, rest.finished.reason) == ([], reason)
        assert rest.finished.stop_token == (5 if reason == FINISH_REASON_STOP else -1)


async def test_many_live_requests_move_in_their_order(tmp_path: Path) -> None:
    first, second = FakeScheduler(fence=1), FakeScheduler(fence=2)
    async with SchedulerLink([f"unix:{tmp_path}/s"]) as link:
        async with serving(first, tmp_path / "s"):
            subscriptions = [link.submit(request()) for _ in range(600)]
            await heard(first, 600)
        for subscription in subscriptions[::2]:
            subscription.close()
        async with serving(second, tmp_path / "s"):
            await heard(second, 300)
    assert [submit.id for submit in second.submits] == list(range(2, 601, 2))
    assert len(second.messages) == 2
    assert second.cancels == []
