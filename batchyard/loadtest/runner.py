"""Plays jobs against a server, in a closed loop (so many at once) or an open one (each at its time)."""

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from batchyard.loadtest.answers import Answer, read_stream, refusal_of
from batchyard.loadtest.calls import Call, Encoder, Job, follow_up
from batchyard.loadtest.client import Client, Exchange
from batchyard.loadtest.lag import ClientHealth, Heartbeat
from batchyard.loadtest.outcomes import Kind, Outcome

_REFUSALS = (429, 503)
_SILENT_RETRY_S = 1.0  # where a 429 names no time


@dataclass(frozen=True, slots=True)
class Limits:
    """When a run ends before its jobs do, and how often a refused request is sent again."""

    retries: int = 0
    seconds: float | None = None  # after which nothing new is sent


@dataclass
class Tally:
    """What is known while a run goes on. `requests`: how many there will be, None where time decides."""

    requests: int | None
    running: int = 0
    outcomes: list[Outcome] = field(default_factory=list)


@dataclass(frozen=True)
class RunRecord:
    """A run that is over. `stopped`: by the user, before its end."""

    outcomes: list[Outcome]
    health: ClientHealth
    stopped: bool


class Runner:
    """One run. `stop` may be set at any time: what is in flight is cancelled, and counted as that."""

    def __init__(self, client: Client, encoder: Encoder, limits: Limits, stop: asyncio.Event) -> None:
        self._client, self._encoder, self._limits, self._stop = client, encoder, limits, stop
        self._start = 0.0
        self._readings: set[asyncio.Task[str | None]] = set()
        self._one_reads = asyncio.Lock()
        self.tally = Tally(None)

    async def closed(self, jobs: Iterable[Job], concurrency: int, requests: int | None = None) -> RunRecord:
        """`concurrency` sessions at once; of `requests` in all, where that is known."""
        waiting = iter(jobs)

        async def one_after_another() -> None:
            for job in waiting:
                if self._time_is_up():
                    return
                await self._play(job, self._now())

        async def side_by_side() -> None:
            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(one_after_another())

        return await self._run(requests, side_by_side)

    async def open(self, jobs: list[Job]) -> RunRecord:
        """Each at its time, whatever the answers take. Jobs are in the order of their times."""

        async def in_time() -> None:
            async with asyncio.TaskGroup() as group:
                for job in jobs:
                    due = job.due or 0.0
                    await asyncio.sleep(max(0.0, due - self._now()))
                    if self._time_is_up():
                        return
                    group.create_task(self._play(job, due))

        return await self._run(sum(1 + len(job.turns) for job in jobs), in_time)

    async def _run(self, requests: int | None, play: Callable[[], Awaitable[None]]) -> RunRecord:
        self.tally = Tally(requests)
        heart = Heartbeat()
        with _quiet_garbage():
            self._start = time.perf_counter()
            heart.start()
            playing = asyncio.ensure_future(play())
            stopping = asyncio.ensure_future(self._stop.wait())
            await asyncio.wait((playing, stopping), return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            if not playing.done():
                playing.cancel()
            await asyncio.wait((playing,))
            await asyncio.gather(*self._readings)
        health = heart.stop()
        if not playing.cancelled():
            playing.result()  # what went wrong in us
        outcomes = sorted(self.tally.outcomes, key=lambda outcome: (outcome.number, outcome.turn))
        return RunRecord(outcomes, health, self._stop.is_set())

    def _now(self) -> float:
        return time.perf_counter() - self._start

    def _time_is_up(self) -> bool:
        return self._limits.seconds is not None and self._now() >= self._limits.seconds

    async def _play(self, job: Job, due: float) -> None:
        """A session, turn by turn; it ends with a request that is not answered."""
        reading = await self._ask(job, 0, job.call, due)
        messages = job.messages
        for number, turn in enumerate(job.turns, 1):
            text = await asyncio.shield(reading)
            if text is None or self._time_is_up():
                return
            if turn.think_s:
                await asyncio.sleep(turn.think_s)
            messages = follow_up(messages, text, turn)
            call = self._encoder.call(messages, turn.max_tokens)
            reading = await self._ask(job, number, call, self._now())

    async def _ask(self, job: Job, turn: int, call: Call, due: float) -> "asyncio.Task[str | None]":
        """Sends a request until it is answered or given up.

        The answer's text, None where there is none, comes later: who is next need not wait until it has been
        read.
        """
        sending = _Sending(job.number, turn, call, due, self._now())
        self.tally.running += 1
        try:
            while True:
                exchange = await self._client.post(call.path, call.body)
                sending.retry_after = _retry_after(exchange) or sending.retry_after
                if not is_refusal(exchange) or sending.refusals == self._limits.retries:
                    break
                sending.refusals += 1
                await asyncio.sleep(sending.retry_after or _SILENT_RETRY_S)
        except asyncio.CancelledError:
            self.tally.outcomes.append(sending.cancelled(self._now()))
            raise
        finally:
            self.tally.running -= 1
        reading = asyncio.create_task(self._read(sending, exchange))
        self._readings.add(reading)
        reading.add_done_callback(self._readings.discard)
        return reading

    async def _read(self, sending: "_Sending", exchange: Exchange) -> str | None:
        # One at a time: where many end together, the streams that go on would not be heard for long.
        async with self._one_reads:
            answer = await read_stream(exchange) if exchange.status == 200 else Answer()
        outcome = sending.outcome(exchange, answer, self._start, self._encoder.pinned)
        self.tally.outcomes.append(outcome)
        return "".join(answer.text) if outcome.ok else None


@dataclass
class _Sending:
    """A request under way. Times are seconds since the run began."""

    number: int
    turn: int
    call: Call
    due: float
    sent: float
    refusals: int = 0
    retry_after: float | None = None

    def cancelled(self, now: float) -> Outcome:
        """What it came to if it was stopped."""
        return Outcome(
            self.number,
            Kind.CANCELLED,
            self.due,
            self.sent,
            now,
            self.call.max_tokens,
            turn=self.turn,
            refusals=self.refusals,
        )

    def outcome(self, exchange: Exchange, answer: Answer, start: float, pinned: bool) -> Outcome:
        """What it came to; `start` of the run by the clock of the stamps."""
        kind, error = judge(exchange, answer)
        stamps = [at - start for at in answer.stamps]
        return Outcome(
            number=self.number,
            kind=kind,
            due=self.due,
            sent=self.sent,
            end=stamps[-1] if stamps else exchange.end - start,
            asked=self.call.max_tokens,
            input_tokens=answer.input_tokens or self.call.input_tokens,
            output_tokens=len(stamps) if answer.output_tokens is None else answer.output_tokens,
            stamps=stamps,
            turn=self.turn,
            status=exchange.status,
            error=error,
            refusals=self.refusals,
            retry_after=self.retry_after,
            queue=_queue_seconds(exchange),
            counted=answer.output_tokens is not None,
            pinned=pinned,
        )


def is_refusal(exchange: Exchange) -> bool:
    """Whether the server has no room now: 429, or 503 that says when to come again."""
    return exchange.status == 429 or (exchange.status == 503 and "retry-after" in exchange.headers)


def judge(exchange: Exchange, answer: Answer) -> tuple[Kind, str | None]:
    """How a request ended, and what was wrong."""
    if exchange.status and exchange.status != 200:
        return (Kind.REFUSED if is_refusal(exchange) else Kind.FAILED), refusal_of(exchange)
    # A server may end an answer by closing the connection: what it has said to the end is whole.
    if problem := answer.error or (None if answer.done else exchange.error):
        return Kind.FAILED, problem
    if not answer.stamps:
        return Kind.FAILED, "no token in the answer"
    if not answer.done:
        return Kind.FAILED, "the answer broke off: neither a finish reason nor [DONE]"
    return Kind.OK, None


def _retry_after(exchange: Exchange) -> float | None:
    try:
        return max(0.0, float(exchange.headers["retry-after"]))
    except (KeyError, ValueError):  # or a date, which no such server sends
        return None


def _queue_seconds(exchange: Exchange) -> float | None:
    """`x-queue-time` in milliseconds, as Text Generation Inference sends it."""
    try:
        return float(exchange.headers["x-queue-time"]) / 1000
    except (KeyError, ValueError):
        return None


@contextmanager
def _quiet_garbage() -> Iterator[None]:
    """No garbage collection meanwhile: a full one stops every stream for tens of milliseconds."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
