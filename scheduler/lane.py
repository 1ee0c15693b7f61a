"""One worker as the scheduler sees it: its stream, its steps in flight, the requests given to it."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from batchyard.errors import InternalError, ProtocolError
from prefix_cache.mirror import PrefixMirror, key_of
from protos.packing import unpack_u32
from protos.step_pb2 import WorkerDescription
from scheduler.batcher import Admissions, Batcher, Step
from scheduler.block_pool import BlockPool
from scheduler.pacing import Pacing
from scheduler.placement import Load
from scheduler.queue import WaitingQueue
from scheduler.request import Request
from scheduler.results import ResultHandler
from scheduler.rows import Rows
from scheduler.session import Sessions
from scheduler.transport import StepStream, Transport

log = structlog.get_logger()

_WATCH_INTERVAL = 1.0  # seconds between looks for a missed deadline
_RETRY_WAITS = (0.1, 0.2, 0.5, 1.0)  # seconds


@dataclass(frozen=True, slots=True)
class LaneOptions:
    """How a lane steps its worker."""

    steps_in_flight: int  # at least; 1 is synchronous
    step_timeout: float  # seconds
    caching: bool


@dataclass(slots=True)
class _Connection:
    """What lives as long as one stream."""

    worker: WorkerDescription
    stream: StepStream
    batcher: Batcher
    results: ResultHandler
    in_flight: deque[Step]
    mirror_key: str
    pacing: Pacing


def _mirror_key(worker: WorkerDescription) -> str:
    return key_of(worker.model, worker.block_size, worker.worker_id, worker.epoch)


class Lane:
    """Keeps a stream to one worker, sends it steps and takes its results."""

    def __init__(
        self,
        transport: Transport,
        options: LaneOptions,
        sessions: Sessions,
        admissions: Admissions,
        on_change: Callable[[], None],
        take_back: Callable[[list[Request]], None],
        mirror: PrefixMirror | None,
    ) -> None:
        """`on_change` is told when a step may be sent; `take_back` gets the requests of a lost worker."""
        self.address = transport.address
        self.waiting = WaitingQueue()  # given to this worker, not yet in a row
        self.worker: WorkerDescription | None = None  # as it last described itself
        self.steps = 0
        self.step_seconds = 0.0  # sum over answered steps, from sending to answer
        self.tokens = 0
        self.last_result = time.monotonic()
        self._transport = transport
        self._options = options
        self._sessions = sessions
        self._admissions = admissions
        self._on_change = on_change
        self._take_back = take_back
        self._mirror = mirror
        self._connection: _Connection | None = None

    @property
    def connected(self) -> bool:
        """Whether steps can be sent."""
        return self._connection is not None

    @property
    def batcher(self) -> Batcher | None:
        """The books of the connected worker."""
        return self._connection.batcher if self._connection else None

    @property
    def steps_in_flight(self) -> int:
        """Steps sent and not answered."""
        return len(self._connection.in_flight) if self._connection else 0

    @property
    def wants_requests(self) -> bool:
        """Whether it should be given requests: not more than its next two steps can begin."""
        batcher = self.batcher
        return batcher is not None and self.waiting.tokens < 2 * batcher.budget

    def load_for(self, request: Request) -> Load:
        """What `request` would find here. Needs a connected worker."""
        batcher = self.batcher
        if batcher is None:
            raise AssertionError("not connected")
        cached = batcher.cached_tokens(request)
        queued = self.waiting.tokens + batcher.backlog
        return Load(len(request.tokens) - cached, queued, batcher.rows.taken + len(self.waiting))

    def step(self) -> bool:
        """Composes and sends one step, if there is something to do and room in flight."""
        connection = self._connection
        if connection is None or len(connection.in_flight) >= connection.pacing.depth:
            return False
        step = connection.batcher.compose(self.waiting)
        self._take_back(connection.batcher.settled())
        if step is None:
            return False
        connection.in_flight.append(step)
        connection.stream.send(step.batch)
        return True

    def end(self, request: Request) -> None:
        """`request`, which was given to this worker, is over."""
        batcher = self.batcher
        if request.row is not None:
            if batcher:
                batcher.end(request.row)
        elif not (batcher and batcher.entrance.forget(request)):
            self.waiting.cancel(request)

    async def run(self) -> None:
        """Serves for ever: connects, steps, and after a loss gives the requests back and connects again."""
        failures = 0
        while True:
            try:
                await self._connect()
                failures = 0
                await self._receive()
            except InternalError as error:
                if self.connected:
                    log.warning("worker_lost", address=self.address, error=str(error))
                else:
                    log.debug("worker_not_ready", address=self.address, error=str(error))
            finally:
                self._disconnect()
            await asyncio.sleep(_RETRY_WAITS[min(failures, len(_RETRY_WAITS) - 1)])
            failures += 1

    async def _connect(self) -> None:
        stream = await self._transport.open()
        try:
            # Asked after opening: until then, steps of an earlier stream may still have been writing blocks.
            worker = await self._transport.describe()
        except BaseException:
            stream.close()
            raise
        rows = Rows(worker.max_rows, worker.max_model_len, worker.block_size)
        pool = BlockPool(worker.num_blocks, unpack_u32(worker.block_generations).tolist())
        restored = await self._restore(worker, pool)
        batcher = Batcher(
            rows,
            pool,
            worker.max_batched_tokens,
            caching=self._options.caching,
            admissions=self._admissions,
            num_host_blocks=worker.num_host_blocks,
        )
        results = ResultHandler(batcher, self._sessions, worker.vocab_size)
        self._connection = _Connection(
            worker,
            stream,
            batcher,
            results,
            deque(),
            _mirror_key(worker),
            Pacing(self._options.steps_in_flight),
        )
        self.worker = worker
        self.last_result = time.monotonic()
        log.info(
            "worker_connected",
            address=self.address,
            worker=worker.worker_id,
            device=worker.device,
            blocks=worker.num_blocks,
            host_blocks=worker.num_host_blocks,
            rows=worker.max_rows,
            warm_blocks=restored,
        )
        self._on_change()

    async def _receive(self) -> None:
        connection = self._connection
        if connection is None:
            raise AssertionError("not connected")
        watchdog = asyncio.create_task(self._watch(connection))
        try:
            while True:
                result = await connection.stream.receive()
                if result.HasField("moved"):
                    connection.batcher.moved(result.moved)
                    self._on_change()
                    continue
                if not connection.in_flight:
                    raise ProtocolError(f"{self.address}: answer to step {result.step}, which was never sent")
                step = connection.in_flight.popleft()
                self.tokens += connection.results.apply(step, result)
                self._take_back(connection.batcher.settle(result.step))
                self._remember(connection, result.step)
                busy_us = result.forward_us + result.sample_us
                connection.pacing.observe(busy_us)
                connection.batcher.tiers.costs.observe_step(result.num_tokens, busy_us)
                self._account(step)
                self._sessions.flush()
                self._on_change()
        finally:
            watchdog.cancel()

    async def _restore(self, worker: WorkerDescription, pool: BlockPool) -> int:
        """Makes what the mirror knows of this worker's blocks, and is still true, usable again."""
        if self._mirror is None or not self._options.caching:
            return 0
        return pool.restore(await self._mirror.load(_mirror_key(worker)))

    def _remember(self, connection: _Connection, step: int) -> None:
        for contents in connection.batcher.pool.confirmed(step):
            if self._mirror:
                self._mirror.note(connection.mirror_key, *contents)

    def _account(self, step: Step) -> None:
        self.last_result = time.monotonic()
        self.steps += 1
        self.step_seconds += self.last_result - step.sent_at

    async def _watch(self, connection: _Connection) -> None:
        """Breaks the stream when an answer is overdue, so that `receive` raises WorkerLost."""
        while True:
            await asyncio.sleep(_WATCH_INTERVAL)
            oldest = connection.in_flight[0].sent_at if connection.in_flight else None
            # The clock of a step starts when the one before it was answered.
            if oldest and time.monotonic() - max(oldest, self.last_result) > self._options.step_timeout:
                log.error("step_overdue", address=self.address, step=connection.in_flight[0].batch.step)
                connection.stream.close()
                return

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        connection.stream.close()
        self._take_back(connection.batcher.evacuate() + self.waiting.drain())
        self._on_change()
