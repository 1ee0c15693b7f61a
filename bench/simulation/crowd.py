"""Clients of several tenants before the real scheduler, on one simulated worker in virtual time."""

import asyncio
import contextlib
import math
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import structlog

from bench.simulation.worker import SimulatedTransport, SimulatedWorker
from protos.packing import pack_i32, unpack_i32, unpack_u64
from protos.sampling_pb2 import Sampling
from protos.scheduling_pb2 import Refused, SchedulerMessage, Submit
from protos.step_pb2 import StepBatch, StepResult
from scheduler.connection import LaneOptions
from scheduler.core import Scheduler
from scheduler.shedding import BOUNDLESS, QueueLimits
from scheduler.tracing import RequestSpans

BUCKET = 0.5  # seconds over which tokens are counted together


@dataclass(frozen=True, slots=True, order=True)
class Kind:
    """Requests alike but for their tokens. `prompt`, `output` are lengths, the latter a mean if `varied`."""

    prompt: int
    output: int
    tenant: str = ""
    weight: float = 1.0
    priority: int = 0
    timeout_ms: int = 0
    varied: bool = False


@dataclass(slots=True, eq=False)
class Asked:
    """One try of one request. Times in virtual seconds, infinite for what did not happen."""

    kind: Kind
    at: float
    tokens: npt.NDArray[np.int32]
    first: float = math.inf
    last: float = math.inf
    count: int = 0
    refused: Refused | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def ttft(self) -> float:
        """Seconds to the first token."""
        return self.first - self.at


class Witness(SimulatedWorker):
    """Counts tokens served, by tenant: those computed, but not those computed again for a paused row."""

    def __init__(self, num_blocks: int, max_rows: int = 256, budget: int = 8192) -> None:
        super().__init__("worker", num_blocks, max_rows, budget)
        self.served: dict[str, dict[int, int]] = {}  # tenant: bucket: tokens
        self._requests = [-1] * max_rows  # in the rows
        self._tenants: dict[int, str] = {}  # by request
        self._reached: dict[int, int] = {}  # by request: tokens computed at most, or found

    def execute(self, batch: StepBatch) -> tuple[StepResult, float]:
        """As the worker does."""
        for new in batch.new_rows:
            number, _, tenant = new.request_id.partition(" ")
            request = self._requests[new.row] = int(number)
            self._tenants[request] = tenant
            self._reached[request] = max(self._reached.get(request, 0), new.computed)
        result = super().execute(batch)
        computing = [*np.flatnonzero(self._decoding).tolist(), *unpack_i32(batch.chunk_rows).tolist()]
        for row in set(computing):
            self._count(self._requests[row], int(self._computed[row]))
        return result

    def between(self, tenant: str, start: float, end: float) -> int:
        """Tokens computed for `tenant`, to half a second."""
        buckets = range(round(start / BUCKET), round(end / BUCKET))
        return sum(self.served.get(tenant, {}).get(bucket, 0) for bucket in buckets)

    def _count(self, request: int, computed: int) -> None:
        bucket = int(asyncio.get_running_loop().time() / BUCKET)
        served = self.served.setdefault(self._tenants[request], {})
        served[bucket] = served.get(bucket, 0) + max(0, computed - self._reached[request])
        self._reached[request] = max(computed, self._reached[request])


class Crowd:
    """Plays the gateway for everybody."""

    def __init__(self, scheduler: Scheduler, worker: Witness) -> None:
        self.scheduler = scheduler
        self.worker = worker
        self.asked: list[Asked] = []
        self._session = scheduler.sessions.open()
        self._tokens = 0
        self._chance = random.Random(0)

    def ask(self, kind: Kind, again: Asked | None = None) -> Asked:
        """Submits a request, the same as `again` or a new one."""
        tokens = again.tokens if again else self._fresh(kind.prompt)
        asked = Asked(kind, asyncio.get_running_loop().time(), tokens)
        self.asked.append(asked)
        spread = min(4.0, self._chance.expovariate(1.0)) if kind.varied else 1.0
        submit = Submit(
            id=len(self.asked) - 1,
            request_id=f"{len(self.asked) - 1} {kind.tenant}",
            tokens=pack_i32(tokens),
            prompt_len=kind.prompt,
            max_tokens=max(1, round(spread * kind.output)),
            sampling=Sampling(temperature=1.0),
            tenant=kind.tenant,
            weight=kind.weight,
            priority=kind.priority,
            timeout_ms=kind.timeout_ms,
        )
        self.scheduler.submit(self._session, submit)
        return asked

    async def keep(self, kinds: Sequence[tuple[Kind, int]]) -> None:
        """Has so many requests of each kind asked and not answered, for ever. They come in turns at first."""
        async with asyncio.TaskGroup() as group:
            for kind in _in_turns(kinds):
                group.create_task(self._one_after_another(kind))

    async def all(self, kinds: Sequence[tuple[Kind, int]]) -> None:
        """So many requests of each kind at once, in turns; until all are answered."""
        for asked in [self.ask(kind) for kind in _in_turns(kinds)]:
            await asked.over.wait()

    async def arrive(self, kind: Kind, rate: float, seconds: float, seed: int, *, patient: bool) -> None:
        """Poisson arrivals, `rate` a second; who is patient comes back once when told to, if refused."""
        chance = random.Random(seed)
        end = asyncio.get_running_loop().time() + seconds
        async with asyncio.TaskGroup() as group:
            while asyncio.get_running_loop().time() < end:
                group.create_task(self._twice(kind) if patient else self._once(kind))
                await asyncio.sleep(chance.expovariate(rate))

    async def listen(self) -> None:
        """Takes what the scheduler says, for ever."""
        while message := await self._session.outbox.get():
            self._note(message)

    async def _one_after_another(self, kind: Kind) -> None:
        while True:
            await self.ask(kind).over.wait()

    async def _once(self, kind: Kind) -> None:
        await self.ask(kind).over.wait()

    async def _twice(self, kind: Kind) -> None:
        asked = self.ask(kind)
        await asked.over.wait()
        if asked.refused:
            # As the header says it, in whole seconds.
            await asyncio.sleep(max(1, math.ceil(asked.refused.retry_after_ms / 1000)))
            await self.ask(kind, asked).over.wait()

    def _note(self, message: SchedulerMessage) -> None:
        now = asyncio.get_running_loop().time()
        for number in unpack_u64(message.ids).tolist():
            asked = self.asked[number]
            asked.count += 1
            asked.first = min(asked.first, now)
            asked.last = now
        for finished in message.finished:
            self.asked[finished.id].over.set()
        for refused in message.refused:
            self.asked[refused.id].refused = refused
            self.asked[refused.id].over.set()

    def _fresh(self, count: int) -> npt.NDArray[np.int32]:
        """Tokens that nobody has asked yet."""
        self._tokens += count
        return (np.arange(self._tokens - count, self._tokens) % (1 << 30)).astype(np.int32)


def _in_turns(kinds: Sequence[tuple[Kind, int]]) -> list[Kind]:
    return [kind for _, kind in sorted((n / count, kind) for kind, count in kinds for n in range(count))]


@contextlib.asynccontextmanager
async def gather(
    limits: QueueLimits = BOUNDLESS, num_blocks: int = 38_000, max_rows: int = 256
) -> AsyncIterator[Crowd]:
    """A crowd before one worker with the speed and the memory of an H200 with llama-8b."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    worker = Witness(num_blocks, max_rows)
    options = LaneOptions(steps_in_flight=2, step_timeout=1e9, caching=True, calm_chunk_tokens=0)
    clock: Callable[[], float] = asyncio.get_running_loop().time
    scheduler = Scheduler([SimulatedTransport(worker)], options, RequestSpans(), limits=limits, clock=clock)
    crowd = Crowd(scheduler, worker)
    tasks = [asyncio.create_task(scheduler.run()), asyncio.create_task(crowd.listen())]
    while not scheduler.lanes[0].connected:
        await asyncio.sleep(0.001)
    try:
        yield crowd
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
