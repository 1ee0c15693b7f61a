import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from batchyard.errors import (
    BatchyardError,
    InvalidRequest,
    Overloaded,
    RequestFailed,
    SchedulerLost,
    ServerFull,
)
from gateway.link import SchedulerLink
from gateway.subscription import Subscription, Update
from protos.packing import pack_i32
from protos.sampling_pb2 import Logprobs
from protos.scheduling_pb2 import (
    FINISH_REASON_FAILED,
    FINISH_REASON_LENGTH,
    REFUSAL_REASON_INVALID,
    REFUSAL_REASON_OVER_SHARE,
    REFUSAL_REASON_OVERLOADED,
    REFUSAL_REASON_UNAVAILABLE,
    Refused,
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
    token_logprobs,
    tokens,
)


@pytest.fixture
def scheduler() -> FakeScheduler:
    return FakeScheduler()


@pytest.fixture
async def link(scheduler: FakeScheduler, tmp_path: Path) -> AsyncIterator[SchedulerLink]:
    async with connected(scheduler, tmp_path / "s") as link:
        yield link


@pytest.fixture(autouse=True)
async def in_time() -> AsyncIterator[None]:
    with deadline():
        yield


async def submitted(
    scheduler: FakeScheduler, link: SchedulerLink, name: str = "r"
) -> tuple[int, Subscription]:
    before = len(scheduler.submits)
    subscription = link.submit(Submit(request_id=name))
    await scheduler.hear(lambda: len(scheduler.submits) > before)
    return scheduler.submits[-1].id, subscription


async def test_tokens_are_dealt_out_to_their_requests(scheduler: FakeScheduler, link: SchedulerLink) -> None:
    one, first = await submitted(scheduler, link, "one")
    two, second = await submitted(scheduler, link, "two")
    assert [submit.request_id for submit in scheduler.submits] == ["one", "two"]
    scheduler.send(tokens((two, [5, 6]), (99, [1]), (one, [7])))
    assert await anext(first) == Update([7])
    assert await anext(second) == Update([5, 6])
    scheduler.send(SchedulerMessage(started=[Started(id=two, cached_tokens=16)]))
    scheduler.send(ending(two, [8], FINISH_REASON_LENGTH))
    updates = [update async for update in second]
    assert sum(update.cached_tokens for update in updates) == 16
    assert updates[-1].token_ids == [8]
    assert updates[-1].finished is not None
    assert link.num_live == 1


async def test_a_reader_that_lags_finds_all_in_one_update(
    scheduler: FakeScheduler, link: SchedulerLink
) -> None:
    one, slow = await submitted(scheduler, link)
    two, other = await submitted(scheduler, link)
    values = [Logprobs(logprob=-float(at)) for at in range(5)]
    scheduler.send(SchedulerMessage(prompt_logprobs=[prompt_logprobs(one, 1, values[:2])]))
    for at in (2, 3):
        scheduler.send(tokens((one, [at]), logprobs=[token_logprobs(one, values[at])]))
    scheduler.send(ending(one, [4], FINISH_REASON_LENGTH))
    scheduler.send(tokens((two, [1])))
    await anext(other)  # by now, everything before it has come
    update = await anext(slow)
    assert update.token_ids == [2, 3, 4]
    assert update.logprobs == values[2:4]
    assert update.prompt_logprobs == values[:2]
    assert update.finished is not None


async def test_a_prompt_that_is_read_again_is_scored_once(
    scheduler: FakeScheduler, link: SchedulerLink
) -> None:
    one, subscription = await submitted(scheduler, link)
    values = [Logprobs(logprob=-float(at)) for at in range(6)]  # of positions 1 to 6
    for first, last in [
        (1, 2),
        (3, 3),
        (1, 4),
        (5, 6),
        (1, 6),
    ]:  # the row was lost after position 3, and after 6
        part = prompt_logprobs(one, first, values[first - 1 : last])
        scheduler.send(SchedulerMessage(prompt_logprobs=[part]))
    scheduler.send(ending(one, [2], FINISH_REASON_LENGTH))
    updates = [update async for update in subscription]
    assert [score for update in updates for score in update.prompt_logprobs] == values


async def test_many_submits_travel_in_few_messages(scheduler: FakeScheduler, link: SchedulerLink) -> None:
    for at in range(200):
        link.submit(Submit(request_id=str(at)))
    await scheduler.hear(lambda: len(scheduler.submits) == 200)
    assert len(scheduler.messages) == 1
    assert [submit.request_id for submit in scheduler.submits] == [str(at) for at in range(200)]
    assert len({submit.id for submit in scheduler.submits}) == 200


async def test_closing_cancels_once(scheduler: FakeScheduler, link: SchedulerLink) -> None:
    one, subscription = await submitted(scheduler, link)
    with subscription:
        subscription.close()
    subscription.close()
    with pytest.raises(StopAsyncIteration):
        await anext(subscription)
    await submitted(scheduler, link)
    assert scheduler.cancels == [one]
    scheduler.send(tokens((one, [1])))  # it crossed the cancel on the way
    assert link.num_live == 1


async def test_a_reader_that_is_waiting_sees_the_end_when_closed(
    scheduler: FakeScheduler, link: SchedulerLink
) -> None:
    one, subscription = await submitted(scheduler, link)

    async def read() -> list[Update]:
        return [update async for update in subscription]

    reading = asyncio.create_task(read())
    await asyncio.sleep(0)
    subscription.close()
    assert await reading == []
    await scheduler.hear(lambda: scheduler.cancels == [one])


async def test_what_has_ended_is_not_cancelled(scheduler: FakeScheduler, link: SchedulerLink) -> None:
    one, subscription = await submitted(scheduler, link)
    scheduler.send(ending(one, [1], FINISH_REASON_LENGTH))
    with subscription:
        assert len([update async for update in subscription]) == 1
    await submitted(scheduler, link)
    assert scheduler.cancels == []


async def test_what_was_closed_before_it_left_is_never_sent(
    scheduler: FakeScheduler, link: SchedulerLink
) -> None:
    link.submit(Submit(request_id="gone")).close()
    await submitted(scheduler, link, "next")
    assert [submit.request_id for submit in scheduler.submits] == ["next"]
    assert scheduler.cancels == []


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        (REFUSAL_REASON_INVALID, InvalidRequest),
        (REFUSAL_REASON_OVERLOADED, ServerFull),
        (REFUSAL_REASON_OVER_SHARE, Overloaded),
        (REFUSAL_REASON_UNAVAILABLE, SchedulerLost),
    ],
)
async def test_a_refusal_is_an_error_of_its_kind(
    scheduler: FakeScheduler, link: SchedulerLink, reason: int, kind: type[BatchyardError]
) -> None:
    one, subscription = await submitted(scheduler, link)
    refused = Refused(id=one, reason=reason, message="because")  # type: ignore[arg-type]
    scheduler.send(SchedulerMessage(refused=[refused]))
    with pytest.raises(kind, match="because"):
        await anext(subscription)
    with pytest.raises(StopAsyncIteration):
        await anext(subscription)
    assert link.num_live == 0


@pytest.mark.parametrize("reason", [REFUSAL_REASON_OVERLOADED, REFUSAL_REASON_OVER_SHARE])
async def test_a_refusal_says_when_to_come_back(
    scheduler: FakeScheduler, link: SchedulerLink, reason: int
) -> None:
    one, subscription = await submitted(scheduler, link)
    refused = Refused(id=one, reason=reason, message="full", retry_after_ms=2500)  # type: ignore[arg-type]
    scheduler.send(SchedulerMessage(refused=[refused]))
    with pytest.raises(Overloaded) as told:
        await anext(subscription)
    assert told.value.retry_after_s == 2.5


async def test_a_failure_comes_after_the_tokens_before_it(
    scheduler: FakeScheduler, link: SchedulerLink
) -> None:
    one, subscription = await submitted(scheduler, link)
    scheduler.send(ending(one, [3, 4], FINISH_REASON_FAILED, error="out of luck"))
    assert await anext(subscription) == Update([3, 4])
    with pytest.raises(RequestFailed, match="out of luck"):
        await anext(subscription)
    assert scheduler.cancels == []


@pytest.mark.parametrize(
    "message",
    [
        SchedulerMessage(ids=b"123"),
        SchedulerMessage(counts=pack_i32([2]), tokens=pack_i32([5])),
        SchedulerMessage(counts=pack_i32([1]), tokens=pack_i32([5])),
        SchedulerMessage(prompt_logprobs=[prompt_logprobs(1, 2, [])]),
    ],
)
async def test_a_malformed_message_breaks_the_stream(
    scheduler: FakeScheduler, link: SchedulerLink, message: SchedulerMessage
) -> None:
    one, subscription = await submitted(scheduler, link)
    scheduler.send(message)
    await scheduler.hear(lambda: [submit.id for submit in scheduler.submits] == [one, one])
    scheduler.send(ending(one, [5], FINISH_REASON_LENGTH))
    assert (await anext(subscription)).token_ids == [5]


async def test_a_request_whose_streams_all_break_fails(scheduler: FakeScheduler, tmp_path: Path) -> None:
    def break_off(submit: Submit) -> None:
        scheduler.send(SchedulerMessage(ids=b"123"))

    scheduler.on_submit = break_off
    async with connected(scheduler, tmp_path / "s", wait_s=0.2) as link:
        with pytest.raises(SchedulerLost, match="lost the scheduler"):
            await anext(link.submit(Submit()))


async def test_requests_end_with_the_link(scheduler: FakeScheduler, tmp_path: Path) -> None:
    async with connected(scheduler, tmp_path / "s") as link:
        _, subscription = await submitted(scheduler, link)
    with pytest.raises(SchedulerLost, match="the gateway is closing"):
        await anext(subscription)


async def test_the_scheduler_describes_itself(scheduler: FakeScheduler, link: SchedulerLink) -> None:
    assert (await link.describe()).max_model_len == 64
    scheduler.description = None
    with pytest.raises(SchedulerLost, match=r"does not answer$"):
        await link.describe()
