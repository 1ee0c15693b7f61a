"""One worker as the scheduler sees it: its stream, its steps in flight, the requests given to it."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from batchyard.errors import InternalError, ProtocolError, WorkerLost
from protos.step_pb2 import StepResult, WorkerDescription
from scheduler.batcher import Batcher, Step
from scheduler.cache_counts import CacheCounts
from scheduler.connection import Connection, Connector
from scheduler.load import Load
from scheduler.queue import WaitingQueue
from scheduler.request import Request
from scheduler.transport import Transport

log = structlog.get_logger()

_WATCH_INTERVAL = 1.0  # seconds between looks for a missed deadline
WORK_AHEAD = 8  # full steps
_RETRY_WAITS = (0.1, 0.2, 0.5, 1.0)  # seconds
_DRAIN_WAIT = 0.5  # seconds for the steps in flight; what is not answered by then is computed again elsewhere


@dataclass(slots=True)
class _Drain:
    """That a worker's process is to be let go."""

    epoch: int  # which process
    moved: int = 0  # requests
    done: asyncio.Event = field(default_factory=asyncio.Event)


class Lane:
    """Keeps a stream to one worker, sends it steps and takes its results."""

    def __init__(
        self,
        transport: Transport,
        connector: Connector,
        waiting: WaitingQueue,
        on_change: Callable[[], None],
        take_back: Callable[[list[Request]], None],
        is_taken: Callable[[int], bool],
        clock: Callable[[], float],
    ) -> None:
        """`waiting` is for the requests given to this worker that have no row yet.

        `on_change` is told when a step may be sent, `take_back` gets the requests of a lost worker, and
        `is_taken` says whether another lane has the worker's process of an epoch.
        """
        self.address = transport.address
        self.waiting = waiting
        self.worker: WorkerDescription | None = None  # as it last described itself
        self.streams = 0  # opened so far: with each the worker may have another cache
        self.steps = 0
        self.step_seconds = 0.0  # sum over answered steps, from sending to answer
        self.tokens = 0
        self.last_result = time.monotonic()
        self.lost_at: float | None = None  # when the last stream ended, in the seconds of time.monotonic
        self._counts = CacheCounts()  # on streams before this one
        self._transport = transport
        self._connector = connector
        self._on_change = on_change
        self._take_back = take_back
        self._is_taken = is_taken
        self._clock = clock
        self._held_back: asyncio.TimerHandle | None = None
        self._connection: Connection | None = None
        self._drain: _Drain | None = None
        self._hurry = asyncio.Event()

    @property
    def name(self) -> str:
        """The worker's, or its address until it has told."""
        return self.worker.worker_id if self.worker else self.address

    @property
    def weight(self) -> float:
        """How fast the worker is beside the others, as it said."""
        return (self.worker and self.worker.weight) or 1.0

    @property
    def connected(self) -> bool:
        """Whether steps can be sent."""
        return self._connection is not None

    @property
    def draining(self) -> bool:
        """Whether the worker, in the process last seen, is to be let go, or has been."""
        return self._drain is not None and self.worker is not None and self._drain.epoch == self.worker.epoch

    @property
    def takes_requests(self) -> bool:
        """Whether requests can be given to it."""
        return self.connected and not self.draining

    @property
    def idle(self) -> bool:
        """Whether no request is here."""
        batcher = self.batcher
        return not (batcher and (batcher.rows.taken or batcher.entrance.aside or len(self.waiting)))

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
    def overdue(self) -> float:
        """Seconds for which the worker has owed an answer; 0 when it owes none."""
        if not (self._connection and self._connection.in_flight):
            return 0.0
        # The clock of a step starts when the one before it was answered.
        return time.monotonic() - max(self._connection.in_flight[0].sent_at, self.last_result)

    def wants(self, request: Request) -> bool:
        """Whether it should be given `request`: fewer than WORK_AHEAD steps' work would go before it.

        Fewer would send a request elsewhere than to its prefix, more would commit it long before its turn.
        """
        batcher = self.batcher
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

    def recall(self) -> None:
        """Those who wait here for a row are given back, to be placed anew."""
        if connection := self._connection:
            given = self.waiting.drain()
            for request in given:
                if request.pinned:
                    self.waiting.push(request)
            self._give_back(connection, [request for request in given if not request.pinned])

    def _connected(self) -> Connection:
        if self._connection is None:
            raise AssertionError("not connected")
        return self._connection

    def _give_back(self, connection: Connection, preempted: list[Request]) -> None:
        for request in preempted:
            connection.outlook.forget(request)
        self._take_back(preempted)

    def step(self) -> bool:
        """Composes and sends one step, if there is something to do and room in flight."""
        connection = self._connection
        if connection is None or self.draining or len(connection.in_flight) >= connection.pacing.depth:
            return False
        if wait := connection.pacing.hold_back(self._clock()):
            self._step_later(wait)
            return False
        step = connection.batcher.compose(self.waiting)
        self._give_back(connection, connection.batcher.settled())
        if step is None:
            return False
        connection.in_flight.append(step)
        connection.stream.send(step.batch)
        connection.pacing.sent(step.num_prompt_tokens, self._clock())
        if step.batch.chunk_rows:
            connection.outlook.composed()
        return True

    def _step_later(self, seconds: float) -> None:
        if self._held_back is None:
            self._held_back = asyncio.get_running_loop().call_later(seconds, self._step_now)

    def _step_now(self) -> None:
        self._held_back = None
        self._on_change()

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

    def drain(self) -> None:
        """Lets the worker's process go: at the next step edge its requests go elsewhere and the stream ends.

        It gets no more, unless `resume` is called; another process at its address is taken on again.
        """
        if self.draining or self.worker is None:
            return
        self._drain = _Drain(self.worker.epoch)
        log.info("worker_draining", address=self.address, worker=self.name)
        connection = self._connection
        if connection is None:
            self._drain.done.set()
            return
        given = self.waiting.drain()
        self._drain.moved = len(given)
        self._give_back(connection, given)
        asyncio.get_running_loop().call_later(
            _DRAIN_WAIT if connection.in_flight else 0, connection.stream.close
        )
        self._on_change()

    async def drained(self) -> int:
        """Returns when a worker that is `draining` has been let go: how many requests went elsewhere."""
        if self._drain is None:
            raise AssertionError("not draining")
        await self._drain.done.wait()
        return self._drain.moved

    def resume(self) -> None:
        """The worker is to be used again, if it was drained."""
        if self._drain:
            self._drain.done.set()
        self._drain = None
        self.hurry()

    def hurry(self) -> None:
        """There is news of the worker: connecting to it is tried again now."""
        self._hurry.set()

    async def run(self) -> None:
        """Serves for ever: connects, steps, and after a loss gives the requests back and connects again."""
        failures = 0
        while True:
            try:
                await self._connect()
                failures = 0
                await self._receive()
            except InternalError as error:
                if self.connected and not self.draining:
                    log.warning("worker_lost", address=self.address, error=str(error))
                else:
                    log.debug("worker_not_ready", address=self.address, error=str(error))
            finally:
                self._disconnect()
            await self._pause(_RETRY_WAITS[min(failures, len(_RETRY_WAITS) - 1)])
            failures += 1

    async def close(self) -> None:
        """Lets go of the way to the worker, for good."""
        await self._transport.close()

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._hurry.wait(), seconds)
        self._hurry.clear()

    async def _connect(self) -> None:
        # Asked before opening: that takes the worker over from whoever has it.
        self.worker = worker = await self._transport.describe()
        if self.draining:
            raise WorkerLost(f"{self.address}: drained")
        if self._is_taken(worker.epoch):
            raise WorkerLost(f"{self.address}: {worker.worker_id} is connected by another address already")
        self._connection = connection = await self._connector.open(self._transport, self.waiting)
        self.worker = worker = connection.worker
        self.streams += 1
        self.last_result = time.monotonic()
        log.info(
            "worker_connected",
            address=self.address,
            worker=worker.worker_id,
            device=worker.device,
            blocks=worker.num_blocks,
            host_blocks=worker.num_host_blocks,
            rows=worker.max_rows,
            warm_blocks=connection.restored,
        )
        self._on_change()

    async def _receive(self) -> None:
        """Takes answers, for as long as there is somebody to step, or steps to be answered."""
        connection = self._connected()
        watchdog = asyncio.create_task(self._watch(connection))
        try:
            while connection.in_flight or not self.draining:
                result = await connection.stream.receive()
                if result.leaving:
                    self.drain()
                elif result.HasField("moved"):
                    connection.batcher.moved(result.moved)
                else:
                    self._answered(connection, result)
                self._on_change()
        finally:
            watchdog.cancel()

    def _answered(self, connection: Connection, result: StepResult) -> None:
        if not connection.in_flight:
            raise ProtocolError(f"{self.address}: answer to step {result.step}, which was never sent")
        step = connection.in_flight.popleft()
        self.tokens += connection.results.apply(step, result)
        self._give_back(connection, connection.batcher.settle(result.step))
        if connection.remembering:
            connection.remembering.answered(result.step, connection.batcher.sent)
        busy_us = result.forward_us + result.sample_us
        at_worker_us = result.queue_us + busy_us
        connection.pacing.answered(busy_us, step.age_us - at_worker_us, self._clock())
        connection.batcher.tiers.costs.observe_step(result.num_tokens, busy_us)
        self._account(step)
        self._connector.sessions.flush()

    def _account(self, step: Step) -> None:
        self.last_result = time.monotonic()
        self.steps += 1
        self.step_seconds += self.last_result - step.sent_at

    async def _watch(self, connection: Connection) -> None:
        """Breaks the stream when an answer is overdue, so that `receive` raises WorkerLost."""
        timeout = self._connector.options.step_timeout
        while True:
            await asyncio.sleep(_WATCH_INTERVAL)
            if self.overdue > timeout:
                log.error("step_overdue", address=self.address, step=connection.in_flight[0].batch.step)
                connection.stream.close()
                return

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        connection.stream.close()
        self.lost_at = time.monotonic()
        self._counts += CacheCounts.of(connection.batcher)
        requests = connection.batcher.evacuate() + self.waiting.drain()
        if self._drain and self.draining:
            self._drain.moved += len(requests)
            self._drain.done.set()
            log.info("worker_drained", address=self.address, worker=self.name, moved=self._drain.moved)
        self._take_back(requests)
        self._on_change()
