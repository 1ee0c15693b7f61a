"""Clients that ask the questions over and over, and what they saw of each stream."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import grpc.aio

from batchyard.rpc import connect
from bench.chaos.errors import NobodyActive
from bench.chaos.questions import Answer, Question
from protos.inference_pb2_grpc import InferenceStub

_PAUSE_S = 0.1  # after an error
_ASK_S = 300.0
_STARTED_S = 60.0


@dataclass(slots=True)
class Stream:
    """One request as its client saw it. Times are those of `time.monotonic`."""

    number: int  # of the question
    gateway: str
    asked: float
    chunks: dict[int, list[float]] = field(default_factory=dict)  # by choice: when each came
    answer: Answer = field(default_factory=Answer)
    ended: float | None = None
    error: str | None = None

    def longest_gap(self, since: float, until: float) -> float:
        """Seconds between two chunks of a choice, in gaps that touch the time from `since` to `until`.

        An error ends a gap too. The wait for a first chunk is one where the question came before `since`;
        where it came later it is time in a queue. 0 where there is no gap.
        """
        first = [self.asked] if self.asked < since else []
        last = [self.ended] if self.error and self.ended else []
        gaps = [
            (start, stop)
            for times in self.chunks.values() or [[]]
            for start, stop in itertools.pairwise([*first, *times, *last])
        ]
        return max((stop - start for start, stop in gaps if start <= until and stop >= since), default=0.0)


class Clients:
    """So many streams at a time, over all gateways that are alive, until they are told to stop."""

    def __init__(self, addresses: Mapping[str, str], questions: Sequence[Question]) -> None:
        """`addresses` of the gateways' gRPC API, by name."""
        self.streams: list[Stream] = []
        self.gone: set[str] = set()  # gateways that nobody asks now
        self._questions = questions
        self._channels = {name: connect(address) for name, address in addresses.items()}
        self._stubs = {name: InferenceStub(channel) for name, channel in self._channels.items()}
        self._numbers = itertools.count()
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False

    def choices_alive(self, gateway: str) -> int:
        """Answers that are under way there."""
        alive = [
            stream.number for stream in self.streams if stream.ended is None and stream.gateway == gateway
        ]
        return sum(self._questions[number].request.n or 1 for number in alive)

    async def start(self, count: int) -> None:
        """Returns when so many streams are alive, and each has had a chunk. Raises TimeoutError."""
        self._tasks = [asyncio.create_task(self._ask_on(n)) for n in range(count)]
        await until(lambda: len(self.streams) >= count, 10)
        started = self.streams[:count]
        await until(lambda: all(stream.chunks or stream.error for stream in started), _STARTED_S)

    def take_ended(self) -> list[Stream]:
        """The streams that have ended since this was last called."""
        ended = [stream for stream in self.streams if stream.ended is not None]
        self.streams = [stream for stream in self.streams if stream.ended is None]
        return ended

    def ask_no_more(self) -> None:
        """The streams that are alive go on to their ends."""
        self._stopping = True

    async def stop(self, seconds: float) -> None:
        """No new questions; the streams that have not ended after so long end with an error."""
        self.ask_no_more()
        _, late = await asyncio.wait(self._tasks, timeout=seconds)
        for task in late:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def close(self) -> None:
        """Ends all."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for channel in self._channels.values():
            await channel.close()

    async def ask(self, number: int, gateway: str) -> Stream:
        """Asks one question."""
        stream = Stream(number, gateway, time.monotonic())
        self.streams.append(stream)
        question = self._questions[number]
        call = self._stubs[gateway].Generate(question.request, timeout=_ASK_S)
        try:
            async for piece in call:
                stream.chunks.setdefault(piece.index, []).append(time.monotonic())
                stream.answer.add(piece)
        except grpc.aio.AioRpcError as error:
            stream.error = f"{error.code().name}: {error.details()}"
        except asyncio.CancelledError:
            stream.error = "it hung"
            raise
        finally:
            call.cancel()
            stream.ended = time.monotonic()
        return stream

    async def ask_all(self, at_once: int) -> list[Stream]:
        """Asks every question once, so many at a time. Raises RuntimeError where one is not answered."""
        numbers = iter(range(len(self._questions)))
        names = itertools.cycle(self._stubs)

        async def ask_on() -> list[Stream]:
            return [await self.ask(number, next(names)) for number in numbers]

        parts = await asyncio.gather(*(ask_on() for _ in range(at_once)))
        streams = sorted((stream for part in parts for stream in part), key=lambda stream: stream.number)
        if errors := [stream.error for stream in streams if stream.error]:
            raise RuntimeError(f"without any fault: {errors[0]}")
        return streams

    async def _ask_on(self, client: int) -> None:
        names = list(self._stubs)
        while not self._stopping:
            alive = [name for name in names if name not in self.gone]
            stream = await self.ask(next(self._numbers) % len(self._questions), alive[client % len(alive)])
            if stream.error:
                await asyncio.sleep(_PAUSE_S)


async def until(condition: Callable[[], bool], seconds: float) -> None:
    """Returns once `condition` holds. Raises TimeoutError after so many seconds."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def within(ask: Callable[[], Awaitable[bool]], seconds: float) -> None:
    """The same, of a condition that has to be asked for; where nobody can be asked, it does not hold yet."""
    async with asyncio.timeout(seconds):
        while True:
            with suppress(NobodyActive):
                if await ask():
                    return
            await asyncio.sleep(0.05)
