"""One worker as the scheduler sees it: its stream, its steps in flight, the requests given to it."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from batchyard.errors import InternalError, ProtocolError, WorkerTaken
from prefix_cache.mirror import PrefixMirror, key_of
from protos.packing import unpack_u32
from protos.step_pb2 import WorkerDescription
from scheduler.batcher import Admissions, Batcher, Step
from scheduler.block_pool import BlockPool
from scheduler.breaker import PROBE_REQUESTS, Breaker
from scheduler.cache_counts import CacheCounts
from scheduler.load import Load
from scheduler.outlook import Outlook
from scheduler.pacing import Pacing
from scheduler.patience import LOOK_EVERY
from scheduler.peak import AnswerLengths
from scheduler.queue import WaitingQueue
from scheduler.remembering import Remembering
from scheduler.request import Request
from scheduler.results import ResultHandler
from scheduler.rows import Rows
from scheduler.session import Sessions
from scheduler.suspects import Suspects
from scheduler.transport import StepStream, Transport
from scheduler.watch import Watch

log = structlog.get_logger()

WORK_AHEAD = 8  # full steps
_RETRY_WAITS = (0.1, 0.2, 0.5, 1.0)  # seconds


@dataclass(frozen=True, slots=True)
class LaneOptions:
    """How a lane steps its worker."""

    steps_in_flight: int  # at least; 1 is synchronous
    step_timeout: float  # seconds
    caching: bool
    calm_chunk_tokens: int  # prompt tokens that may always join rows that decode; 0 for no limit


@dataclass(slots=True)
class _Connection:
    """What lives as long as one stream."""

    worker: WorkerDescription
    stream: StepStream
    batcher: Batcher
    results: ResultHandler
    in_flight: deque[Step]
    remembering: Remembering | None
    pacing: Pacing
    outlook: Outlook


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
        waiting: WaitingQueue,
        answers: AnswerLengths,
        suspects: Suspects,
        clock: Callable[[], float],
    ) -> None:
        """`on_change` is told when a step may be sent; `take_back` gets the requests of a lost worker.

        `clock` gives seconds.
        """
        self.address = transport.address
        self.waiting = waiting  # given to this worker, not yet in a row
        self.worker: WorkerDescription | None = None  # as it last described itself
        self.streams = 0  # opened so far: with each the worker may have another cache
        self.steps = 0
        self.step_seconds = 0.0  # sum over answered steps, from sending to answer
        self.tokens = 0
        self.losses = 0  # streams that broke
        self.breaker = Breaker(clock)
        self._counts = CacheCounts()  # on streams before this one
        self.last_result = time.monotonic()
        self._transport = transport
        self._options = options
        self._sessions = sessions
        self._admissions = admissions
        self._on_change = on_change
        self._take_back = take_back
        self._mirror = mirror
        self._answers = answers
        self._suspects = suspects
        self._watch = Watch(options.step_timeout)
        self._clock = clock
        self._connection: _Connection | None = None

    @property
    def name(self) -> str:
        """The worker's, or its address until it has told."""
        return self.worker.worker_id if self.worker else self.address

    @property
    def connected(self) -> bool:
        """Whether steps can be sent."""
        return self._connection is not None

    @property
    def batcher(self) -> Batcher | None:
        """The books of the connected worker."""
        return self._connection.batcher if self._connection else None

    @property
    def cache_counts(self) -> CacheCounts:
        """Since the scheduler started."""
        return self._counts + CacheCounts.of(self.batcher) if self.batcher else self._counts

    @property
    def steps_in_flight(self) -> int:
        """Steps sent and not answered."""
        return len(self._connection.in_flight) if self._connection else 0

    @property
    def rows_taken(self) -> int:
        """Rows in use."""
        return self.batcher.rows.taken if self.batcher else 0

    @property
    def is_empty(self) -> bool:
        """Whether nobody is here, and nothing on its way."""
        aside = self.batcher.entrance.aside if self.batcher else []
        return not (self.rows_taken or aside or len(self.waiting) or self.steps_in_flight)

    def tokens_of(self, row: int) -> int:
        """How many tokens of the sequence in `row` have come back. Needs a connected worker."""
        return int(self._connected().batcher.rows.length[row])

    def wants(self, request: Request) -> bool:
        """Whether it should be given `request`: fewer than WORK_AHEAD steps' work would go before it.

        Fewer would send a request elsewhere than to its prefix, more would commit it long before its turn.
        """
        batcher = self.batcher
        if self.breaker.is_probing and self.rows_taken + len(self.waiting) >= PROBE_REQUESTS:
            return False
        return batcher is not None and self.waiting.work_before(request) < WORK_AHEAD * batcher.budget

    def load_bound(self, request: Request, guess: int) -> Load:
        """What `request` would find here at best: see `Outlook.bound`. Needs a connected worker."""
        return self._connected().outlook.bound(request, guess)

    def load_for(self, request: Request) -> Load:
        """What `request` would find here. Needs a connected worker."""
        return self._connected().outlook.exact(request)

    def give(self, request: Request, load: Load) -> None:
        """`request`, which finds `load` here, is to run here."""
        outlook = self._connected().outlook
        request.lane = self
        request.work = load.uncached
        self.waiting.push(request)
        outlook.expect(request, load)

    def clear(self) -> None:
        """Everybody leaves, at the edge of the next step, and is given back. Needs a connected worker."""
        connection = self._connected()
        self._give_back(connection, self.waiting.drain() + connection.batcher.clear())

    def _connected(self) -> _Connection:
        if self._connection is None:
            raise AssertionError("not connected")
        return self._connection

    def _give_back(self, connection: _Connection, preempted: list[Request]) -> None:
        for request in preempted:
            connection.outlook.forget(request)
        self._take_back(preempted)

    def step(self) -> bool:
        """Composes and sends one step, if there is something to do and room in flight."""
        connection = self._connection
        if connection is None or len(connection.in_flight) >= connection.pacing.depth:
            return False
        step = connection.batcher.compose(self.waiting)
        self._give_back(connection, connection.batcher.settled())
        if step is None:
            return False
        if not connection.in_flight:
            self._watch.sent(self._clock())
        connection.in_flight.append(step)
        connection.stream.send(step.batch)
        if step.batch.chunk_rows:
            connection.outlook.composed()
        return True

    def end(self, request: Request) -> None:
        """`request`, which was given to this worker, is over."""
        if self._connection:
            self._connection.outlook.forget(request)
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
            pause = 0.0
            try:
                await self._connect()
                failures = 0
                await self._receive()
            except InternalError as error:
                if self._connection:
                    pause = self._lost(self._connection, error)
                else:
                    log.debug("worker_not_ready", address=self.address, error=str(error))
            finally:
                self._disconnect()
            await asyncio.sleep(max(pause, _RETRY_WAITS[min(failures, len(_RETRY_WAITS) - 1)]))
            failures += 1

    def _lost(self, connection: _Connection, error: InternalError) -> float:
        """Seconds to leave the worker alone."""
        log.warning("worker_lost", address=self.address, error=str(error))
        if isinstance(error, WorkerTaken):
            return 0.0
        self.losses += 1
        if isinstance(error, ProtocolError) and connection.remembering:
            connection.remembering.forget()
        self._suspects.worker_lost(self, connection.batcher, connection.in_flight, error)
        if pause := self.breaker.lost():
            log.error("worker_left_alone", address=self.address, seconds=pause)
        return pause

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
        remembering = self._remembering(worker, pool)
        restored = await remembering.restore() if remembering else 0
        batcher = Batcher(
            rows,
            pool,
            worker.max_batched_tokens,
            caching=self._options.caching,
            admissions=self._admissions,
            calm_chunk_tokens=self._options.calm_chunk_tokens,
            num_host_blocks=worker.num_host_blocks,
            answers=self._answers,
        )
        results = ResultHandler(batcher, self._sessions, worker.vocab_size)
        self._connection = _Connection(
            worker,
            stream,
            batcher,
            results,
            deque(),
            remembering,
            Pacing(self._options.steps_in_flight),
            Outlook(batcher, self.waiting, caching=self._options.caching),
        )
        self.worker = worker
        self.streams += 1
        self.last_result = time.monotonic()
        self._watch.connected(worker.epoch, self._clock())
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
        watchdog = asyncio.create_task(self._keep_watch(connection))
        try:
            while True:
                result = await connection.stream.receive()
                if result.HasField("moved"):
                    self._watch.moved(connection.batcher.tiers, result.moved)
                    connection.batcher.moved(result.moved)
                    self._on_change()
                    continue
                if not connection.in_flight:
                    raise ProtocolError(f"{self.address}: answer to step {result.step}, which was never sent")
                step = connection.in_flight[0]
                self.tokens += connection.results.apply(step, result)
                connection.in_flight.popleft()
                self._suspects.answered()
                self._give_back(connection, connection.batcher.settle(result.step))
                if connection.remembering:
                    connection.remembering.answered(result.step, connection.batcher.sent)
                busy_us = result.forward_us + result.sample_us
                at_worker_us = result.queue_us + busy_us
                connection.pacing.observe(busy_us, step.age_us - at_worker_us)
                connection.batcher.tiers.costs.observe_step(result.num_tokens, busy_us)
                self._account(step)
                self._sessions.flush()
                self._on_change()
        finally:
            watchdog.cancel()

    def _remembering(self, worker: WorkerDescription, pool: BlockPool) -> Remembering | None:
        if self._mirror is None or not self._options.caching:
            return None
        key = key_of(worker.model, worker.block_size, worker.worker_id, worker.epoch)
        return Remembering(self._mirror, key, pool)

    def _account(self, step: Step) -> None:
        self.last_result = time.monotonic()
        self._watch.answered(step, self._clock())
        self.breaker.answered()
        self.steps += 1
        self.step_seconds += self.last_result - step.sent_at

    async def _keep_watch(self, connection: _Connection) -> None:
        """Breaks the stream when an answer is overdue, so that `receive` raises WorkerLost."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            overdue = self._watch.overdue(connection.in_flight, connection.batcher.tiers, self._clock())
            if overdue:
                log.error("worker_overdue", address=self.address, what=overdue)
                connection.stream.close()
                return

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        connection.stream.close()
        self._counts += CacheCounts.of(connection.batcher)
        self._take_back(connection.batcher.evacuate() + self.waiting.drain())
        self._on_change()
