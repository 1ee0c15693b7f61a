import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from batchyard.errors import InvalidRequest, RequestFailed, SchedulerLost
from gateway.generation import Generator
from gateway.link import SchedulerLink
from gateway.submission import Limits
from gateway.types import GenerationRequest, Piece, SamplingParams
from protos.packing import unpack_i32
from protos.scheduling_pb2 import (
    FINISH_REASON_FAILED,
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    SchedulerMessage,
    Started,
    Submit,
)
from tests.gateway import tiny_tokenizers as tiny
from tests.gateway.fake_scheduler import FakeScheduler, connected, deadline, ending, tokens

(END_ID,) = tiny.byte_level().eos_ids


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


@pytest.fixture
def generator(link: SchedulerLink) -> Generator:
    tokenizer = tiny.byte_level()
    return Generator(link, tokenizer, Limits(max_model_len=64, vocab_size=tokenizer.vocab_size))


def asked(prompt: str = "The quick", **params: Any) -> GenerationRequest:
    return GenerationRequest("name", tuple(tiny.byte_level().encode(prompt)), SamplingParams(**params))


async def pieces_of(generator: Generator, request: GenerationRequest) -> list[Piece]:
    return [piece async for piece in generator.generate(request)]


def text_of(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def words(text: str) -> list[int]:
    return tiny.byte_level().encode(text, add_special_tokens=False)


def answers(scheduler: FakeScheduler, ids: list[int], reason: int, **fields: Any) -> None:
    """Answers every request with `ids`, a message for each token."""

    def answer(submit: Submit) -> None:
        scheduler.send(SchedulerMessage(started=[Started(id=submit.id, cached_tokens=16)]))
        for token_id in ids[:-1]:
            scheduler.send(tokens((submit.id, [token_id])))
        scheduler.send(ending(submit.id, ids[-1:], reason, **fields))

    scheduler.on_submit = answer


async def test_an_answer_streams_until_the_end_token(
    scheduler: FakeScheduler, link: SchedulerLink, generator: Generator
) -> None:
    ids = [*words(" brown 日本 fox"), END_ID]
    answers(scheduler, ids, FINISH_REASON_STOP, stop_token=END_ID)
    pieces = await pieces_of(generator, asked())
    assert text_of(pieces) == " brown 日本 fox"
    assert [token_id for piece in pieces for token_id in piece.token_ids] == ids
    assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert (pieces[-1].finish_reason, pieces[-1].stop_reason) == ("stop", None)
    assert sum(piece.cached_tokens for piece in pieces) == 16
    (submit,) = scheduler.submits
    assert unpack_i32(submit.sampling.stop_token_ids).tolist() == [END_ID]
    assert submit.max_tokens == 64 - len(words("The quick")) - 1
    assert (link.num_live, scheduler.cancels) == (0, [])


async def test_many_answers_at_once_do_not_mix(scheduler: FakeScheduler, generator: Generator) -> None:
    def echo(submit: Submit) -> None:
        scheduler.send(ending(submit.id, unpack_i32(submit.tokens)[1:].tolist(), FINISH_REASON_LENGTH))

    scheduler.on_submit = echo
    prompts = [f"fox number {at}" for at in range(50)]
    told = await asyncio.gather(*(pieces_of(generator, asked(prompt)) for prompt in prompts))
    assert [text_of(pieces) for pieces in told] == prompts


async def test_a_stop_string_cancels_before_the_last_piece_is_read(
    scheduler: FakeScheduler, link: SchedulerLink, generator: Generator
) -> None:
    scheduler.on_submit = lambda submit: scheduler.send(tokens((submit.id, words("one\n\ntwo"))))
    async with aclosing(generator.generate(asked(stop=("\n\n",)))) as pieces:
        last = await anext(pieces)
        assert (last.text, last.finish_reason, last.stop_reason) == ("one", "stop", "\n\n")
        await scheduler.hear(lambda: scheduler.cancels == [scheduler.submits[0].id])
        with pytest.raises(StopAsyncIteration):
            await anext(pieces)
    assert link.num_live == 0


async def test_closing_the_generator_cancels_the_request(
    scheduler: FakeScheduler, link: SchedulerLink, generator: Generator
) -> None:
    scheduler.on_submit = lambda submit: scheduler.send(tokens((submit.id, words(" brown"))))
    pieces = generator.generate(asked())
    await anext(pieces)
    await pieces.aclose()
    await scheduler.hear(lambda: scheduler.cancels == [scheduler.submits[0].id])
    assert link.num_live == 0


async def test_cancelling_the_task_cancels_the_request(
    scheduler: FakeScheduler, link: SchedulerLink, generator: Generator
) -> None:
    task = asyncio.create_task(pieces_of(generator, asked()))
    await scheduler.hear(lambda: len(scheduler.submits) == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await scheduler.hear(lambda: scheduler.cancels == [scheduler.submits[0].id])
    assert link.num_live == 0


async def test_a_failed_request_raises_after_its_pieces(
    scheduler: FakeScheduler, generator: Generator
) -> None:
    answers(scheduler, words(" brown fox"), FINISH_REASON_FAILED, error="out of luck")
    pieces: list[Piece] = []

    async def read() -> None:
        async for piece in generator.generate(asked()):
            pieces.append(piece)  # noqa: PERF401 - what came before the error counts

    with pytest.raises(RequestFailed, match="out of luck"):
        await read()
    assert text_of(pieces) == " brown fox"


async def test_a_bad_prompt_never_reaches_the_scheduler(
    scheduler: FakeScheduler, generator: Generator
) -> None:
    with pytest.raises(InvalidRequest, match="maximum context length is 64 tokens"):
        await pieces_of(generator, asked(max_tokens=64))
    with pytest.raises(InvalidRequest, match="token id 9999"):
        await pieces_of(generator, GenerationRequest("name", (9999,), SamplingParams()))
    assert scheduler.submits == []


async def test_a_request_that_finds_no_scheduler_in_time_fails(tmp_path: Path) -> None:
    async with SchedulerLink([f"unix:{tmp_path / 'nobody'}"], wait_s=0.01) as link:
        generator = Generator(link, tiny.byte_level(), Limits(64, 500))
        with pytest.raises(SchedulerLost):
            await pieces_of(generator, asked())
