"""Merging answers, and ending all work when the client goes away."""

import asyncio
from contextlib import aclosing

import pytest
from starlette.requests import ClientDisconnect

from batchyard.errors import Overloaded
from gateway.console.journal import Journal
from gateway.metrics import Metrics
from gateway.observation import Observation
from gateway.request_trace import Traces
from gateway.streaming import EventStream, merge, until_disconnect
from gateway.types import GenerationRequest, Piece, SamplingParams
from tests.gateway.api_fakes import WORDS, FakeGenerator

REQUEST = GenerationRequest("r", (1,), SamplingParams())


def answers(generator: FakeGenerator, count: int):
    return [generator.generate(REQUEST) for _ in range(count)]


@pytest.mark.parametrize("count", [1, 2, 7])
async def test_every_piece_comes_once_and_in_the_order_of_its_answer(count):
    generator = FakeGenerator()
    texts = [""] * count
    async for index, piece in merge(answers(generator, count)):
        texts[index] += piece.text
    assert texts == ["".join(WORDS)] * count
    assert generator.running == 0


@pytest.mark.parametrize("count", [1, 3])
async def test_a_reader_that_stops_closes_all_answers(count):
    generator = FakeGenerator()
    async with aclosing(merge(answers(generator, count))) as pieces:
        async for _ in pieces:
            break
    assert generator.running == 0


@pytest.mark.parametrize("count", [1, 3])
async def test_an_answer_that_fails_closes_the_others(count):
    generator = FakeGenerator()
    failing = FakeGenerator(fails_with=Overloaded("full"), fails_after=1)
    with pytest.raises(Overloaded):
        async for _ in merge([*answers(generator, count - 1), failing.generate(REQUEST)]):
            pass
    assert generator.running == failing.running == 0


async def test_a_slow_reader_is_not_read_ahead_of():
    ahead = 0

    async def eager():
        nonlocal ahead
        while True:
            ahead += 1
            yield Piece("x", (1,))

    async with aclosing(merge([eager(), eager()])) as pieces:
        for _ in range(10):
            await anext(pieces)
            await asyncio.sleep(0)
    assert ahead <= 10 + 2 * 3  # per answer: one queued, one in hand, one made


async def test_work_goes_on_while_the_client_stays():
    async with until_disconnect(never):
        result = await asyncio.sleep(0, "done")
    assert result == "done"


async def test_work_ends_when_the_client_goes():
    ended = asyncio.Event()

    async def work():
        async with until_disconnect(gone):
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

    with pytest.raises(ClientDisconnect):
        await work()
    assert ended.is_set()
    assert asyncio.current_task().cancelling() == 0


async def test_errors_of_the_work_pass():
    with pytest.raises(Overloaded):
        async with until_disconnect(never):
            raise Overloaded("full")


async def test_somebody_elses_cancellation_passes():
    async def work():
        async with until_disconnect(never):
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_error_in_mid_stream_is_the_last_event():
    sent = []

    async def events():
        yield b"data: 1\n\n"
        yield b"data: 2\n\n"
        raise Overloaded("full")

    async def send(message):
        sent.append(message)

    observation = Observation("r", "n", "", Traces(), Metrics(), Journal())
    stream = await EventStream.start(never, events(), observation)
    await stream({"type": "http"}, never, send)
    assert sent[0]["status"] == 200
    assert dict(sent[0]["headers"])[b"content-type"] == b"text/event-stream; charset=utf-8"
    body = [message["body"] for message in sent[1:]]
    assert body[:2] == [b"data: 1\n\n", b"data: 2\n\n"]
    assert body[2].startswith(b'data: {"error": {"message": "full"')
    assert body[2].endswith(b"\n\n")
    assert body[3:] == [b""]
    assert not sent[-1]["more_body"]


async def test_an_error_before_the_first_event_is_raised():
    async def events():
        raise Overloaded("full")
        yield b""

    observation = Observation("r", "n", "", Traces(), Metrics(), Journal())
    with pytest.raises(Overloaded):
        await EventStream.start(never, events(), observation)


async def never():
    await asyncio.Event().wait()


async def gone():
    return {"type": "http.disconnect"}
