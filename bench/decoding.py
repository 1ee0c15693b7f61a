"""The scheduler driving one worker through a steady decode, with nobody else there: no gateway, no HTTP."""

import asyncio
import random
import time
from dataclasses import dataclass

from protos.packing import pack_i32, unpack_i32
from protos.sampling_pb2 import Sampling
from protos.scheduling_pb2 import SchedulerMessage, Submit
from scheduler.connection import LaneOptions
from scheduler.core import Scheduler
from scheduler.lane import Lane
from scheduler.session import Session
from scheduler.tracing import RequestSpans
from scheduler.transport import Transport

_CONNECT_S = 60.0


@dataclass(frozen=True, slots=True)
class Decode:
    """`rows` greedy requests at once, of `prompt` tokens each and `answer` to come."""

    rows: int
    prompt: int = 128
    answer: int = 512
    timeout: float = 120.0  # seconds


async def tokens_per_second(transport: Transport, decode: Decode, steps_in_flight: int = 2) -> float:
    """From the moment all rows decode to the last token. Raises TimeoutError."""
    options = LaneOptions(steps_in_flight, decode.timeout, caching=True, calm_chunk_tokens=0)
    scheduler = Scheduler([transport], options, RequestSpans())
    running = asyncio.create_task(scheduler.run())
    session = scheduler.sessions.open()
    try:
        vocab = await _connected(scheduler.lanes[0])
        async with asyncio.timeout(decode.timeout):
            _submit_all(scheduler, session, decode, vocab)
            return await _steady_rate(session, decode)
    finally:
        scheduler.close(session)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def _connected(lane: Lane) -> int:
    """Waits for the worker, and returns the size of its vocabulary."""
    async with asyncio.timeout(_CONNECT_S):
        while not lane.connected or lane.worker is None:
            await asyncio.sleep(0.01)
    return lane.worker.vocab_size


def _submit_all(scheduler: Scheduler, session: Session, decode: Decode, vocab: int) -> None:
    rng = random.Random(0)
    sampling = Sampling(top_p=1.0, repetition_penalty=1.0)
    for number in range(decode.rows):
        prompt = pack_i32([rng.randrange(3, vocab) for _ in range(decode.prompt)])
        request = Submit(
            id=number,
            request_id=f"request-{number}",
            tokens=prompt,
            prompt_len=decode.prompt,
            max_tokens=decode.answer,
            sampling=sampling,
        )
        scheduler.submit(session, request)


async def _steady_rate(session: Session, decode: Decode) -> float:
    started, tokens, finished, since = 0, 0, 0, 0.0
    while finished < decode.rows:
        message = await _next(session)
        finished += len(message.finished)
        if since:
            tokens += int(unpack_i32(message.counts).sum())
        started += len(message.started)
        if not since and started == decode.rows:
            since = time.perf_counter()
    return tokens / (time.perf_counter() - since)


async def _next(session: Session) -> SchedulerMessage:
    message = await session.outbox.get()
    if message is None or message.refused:
        raise RuntimeError(f"refused: {message.refused[0].message}" if message else "the session is over")
    return message
