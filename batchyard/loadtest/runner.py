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
        text = await self._ask(job, 0, job.call, due)
        messages = job.messages
        for number, turn in enumerate(job.turns, 1):
            if text is None or self._time_is_up():
                return
            if turn.think_s:
                await asyncio.sleep(turn.think_s)
            messages = follow_up(messages, text, turn)
            text = await self._ask(job, number, self._encoder.call(messages, turn.max_tokens), self._now())

    async def _ask(self, job: Job, turn: int, call: Call, due: float) -> str | None:
        """Sends a request until it is answered or given up. Its text, None where there is none."""
        sent, refusals, retry_after = self._now(), 0, None
        self.tally.running += 1
        try:
            while True:
                exchange = await self._client.post(call.path, call.body)
                retry_after = _retry_after(exchange) or retry_after
                if not is_refusal(exchange) or refusals == self._limits.retries:
                    break
                refusals += 1
                await asyncio.sleep(retry_after or _SILENT_RETRY_S)
            answer = await read_stream(exchange) if exchange.status == 200 else Answer()
        except asyncio.CancelledError:
            gone = Outcome(
                job.number,
                Kind.CANCELLED,
                due,
                sent,
                self._now(),
                call.max_tokens,
                turn=turn,
                refusals=refusals,
            )
            self.tally.outcomes.append(gone)
            raise
        finally:
            self.tally.running -= 1
        kind, error = judge(exchange, answer)
        stamps = [at - self._start for at in answer.stamps]
        outcome = Outcome(
            number=job.number,
            kind=kind,
            due=due,
            sent=sent,
            end=stamps[-1] if stamps else exchange.end - self._start,
            asked=call.max_tokens,
            input_tokens=answer.input_tokens or call.input_tokens,
            output_tokens=len(stamps) if answer.output_tokens is None else answer.output_tokens,
            stamps=stamps,
            turn=turn,
            status=exchange.status,
            error=error,
            refusals=refusals,
            retry_after=retry_after,
            queue=_queue_seconds(exchange),
            counted=answer.output_tokens is not None,
            pinned=self._encoder.pinned,
        )
        self.tally.outcomes.append(outcome)
        return "".join(answer.text) if outcome.ok else None


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
