"""Requests through the real scheduler: on simulated workers in virtual time, or on any others."""

import asyncio
import gc
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import structlog

from batchyard.config import SchedulerSettings
from bench.simulation.virtual_time import run
from bench.simulation.worker import SimulatedTransport, SimulatedWorker
from protos.packing import pack_i32, unpack_u64
from protos.sampling_pb2 import Sampling
from protos.scheduling_pb2 import SchedulerMessage, Submit
from scheduler.connection import LaneOptions
from scheduler.core import Scheduler
from scheduler.placement import Placement
from scheduler.request import Tokens
from scheduler.session import Session
from scheduler.tracing import RequestSpans
from scheduler.transport import Transport


class Arrival(Protocol):
    """A request: seconds from the start, tokens of prompt and answer, and the prompt [length] int32."""

    @property
    def at(self) -> float: ...
    @property
    def length(self) -> int: ...
    @property
    def output(self) -> int: ...
    def tokens(self) -> Tokens: ...


@dataclass(slots=True)
class Outcome:
    """What became of each request, in seconds of the event loop, by its number."""

    prompt: npt.NDArray[np.int64]
    cached: npt.NDArray[np.int64]  # prompt tokens that were not computed
    arrived: npt.NDArray[np.float64]
    first: npt.NDArray[np.float64]  # when its first token came; infinite for a refused one
    last: npt.NDArray[np.float64]
    count: npt.NDArray[np.int64]  # tokens
    gaps: list[npt.NDArray[np.float64]] = field(default_factory=list)  # between tokens, step by step
    preemptions: int = 0

    @property
    def ttft(self) -> npt.NDArray[np.float64]:
        """Seconds from arrival to first token."""
        return self.first - self.arrived

    @property
    def itl(self) -> npt.NDArray[np.float64]:
        """Mean seconds from token to token of each request; 0 for one token, and for a refused one."""
        span = np.zeros(len(self.count))
        np.subtract(self.last, self.first, out=span, where=self.count > 0)
        return span / np.maximum(1, self.count - 1)

    @property
    def hit_rate(self) -> float:
        """Share of prompt tokens that were not computed."""
        return float(self.cached.sum() / self.prompt.sum())

    @property
    def seconds(self) -> float:
        """From the first arrival to the last token."""
        return float(self.last[self.count > 0].max() - self.arrived.min())

    def good(self, ttft: float, itl: float) -> npt.NDArray[np.bool_]:
        """Which requests kept both limits, in seconds; one that was refused did not."""
        return (self.ttft <= ttft) & (self.itl <= itl) & (self.count > 0)


Beside = Callable[[Scheduler], Coroutine[None, None, None]]
"""What goes on for as long as the scheduler runs, such as looking at it."""

OPTIONS = LaneOptions(
    steps_in_flight=2,
    step_timeout=1e9,
    caching=True,
    calm_chunk_tokens=SchedulerSettings.model_validate({}).calm_chunk_tokens,
)


def play(
    arrivals: Sequence[Arrival],
    workers: Sequence[SimulatedWorker],
    placement: Placement | None = None,
    options: LaneOptions = OPTIONS,
    concurrency: int | None = None,
    beside: Beside | None = None,
) -> Outcome:
    """Plays `arrivals` to the end, at most `concurrency` at a time, in virtual time; `beside` goes on too."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    transports = [SimulatedTransport(worker) for worker in workers]
    gc.collect()
    gc.freeze()
    try:
        return run(serve(arrivals, transports, placement, options, concurrency, beside))
    finally:
        gc.unfreeze()


async def serve(
    arrivals: Sequence[Arrival],
    transports: Sequence[Transport],
    placement: Placement | None = None,
    options: LaneOptions = OPTIONS,
    concurrency: int | None = None,
    beside: Beside | None = None,
) -> Outcome:
    """As `play`, on any workers, by the event loop's clock. The scheduler knows nothing of their caches."""
    scheduler = Scheduler(
        transports,
        options,
        RequestSpans(),
        placement=placement,
        clock=asyncio.get_running_loop().time,
    )
    serving = asyncio.create_task(scheduler.run())
    while not all(lane.connected for lane in scheduler.lanes):
        await asyncio.sleep(0.001)
    tasks = [serving, *([asyncio.create_task(beside(scheduler))] if beside else [])]
    session = scheduler.sessions.open()
    outcome = _blank(arrivals)
    turns = asyncio.Semaphore(concurrency or len(arrivals))
    asking = asyncio.create_task(_ask(scheduler, session, arrivals, outcome, turns))
    over = 0
    while over < len(arrivals):
        for _ in range(_note(await session.outbox.get(), outcome)):
            over += 1
            turns.release()
    await asking
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    outcome.preemptions = scheduler.preemptions
    return outcome


async def _ask(
    scheduler: Scheduler,
    session: Session,
    arrivals: Sequence[Arrival],
    outcome: Outcome,
    turns: asyncio.Semaphore,
) -> None:
    loop = asyncio.get_running_loop()
    start = loop.time()
    for number, arrival in enumerate(arrivals):
        await asyncio.sleep(start + arrival.at - loop.time())
        await turns.acquire()
        outcome.arrived[number] = loop.time()
        tokens = arrival.tokens()
        scheduler.submit(
            session,
            Submit(
                id=number,
                request_id=str(number),
                tokens=pack_i32(tokens),
                prompt_len=len(tokens),
                max_tokens=arrival.output,
                sampling=Sampling(temperature=1.0, top_p=1.0, repetition_penalty=1.0),
            ),
        )


def _note(message: SchedulerMessage | None, outcome: Outcome) -> int:
    """Takes one message; how many requests it ends."""
    if message is None:
        raise AssertionError("the session ended")
    now = asyncio.get_running_loop().time()
    numbers = unpack_u64(message.ids).astype(np.int64)
    going = numbers[outcome.count[numbers] > 0]
    outcome.gaps.append(now - outcome.last[going])
    outcome.count[numbers] += 1
    outcome.first[numbers] = np.minimum(outcome.first[numbers], now)
    outcome.last[numbers] = now
    for started in message.started:
        outcome.cached[started.id] = started.cached_tokens
    return len(message.finished) + len(message.refused)


def _blank(arrivals: Sequence[Arrival]) -> Outcome:
    count = len(arrivals)
    return Outcome(
        prompt=np.array([arrival.length for arrival in arrivals], np.int64),
        cached=np.zeros(count, np.int64),
        arrived=np.zeros(count),
        first=np.full(count, np.inf),
        last=np.full(count, np.inf),
        count=np.zeros(count, np.int64),
    )
