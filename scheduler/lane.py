"""One worker as the scheduler sees it: its stream, its steps in flight, the requests given to it."""

import asyncio
import time
from collections.abc import Callable, Sequence

import structlog

from batchyard.errors import InternalError, ProtocolError, WorkerLost, WorkerTaken
from protos.step_pb2 import StepResult, WorkerDescription
from scheduler.batcher import Batcher
from scheduler.breaker import PROBE_REQUESTS, Breaker
from scheduler.connection import Connection, Connector
from scheduler.draining import Drain
from scheduler.load import Load
from scheduler.queue import WaitingQueue
from scheduler.request import Request
from scheduler.retries import Retries
from scheduler.suspects import Suspects
from scheduler.tally import Tally
from scheduler.timeline import Loss
from scheduler.transport import Transport
from scheduler.watch import Watch

log = structlog.get_logger()

WORK_AHEAD = 8  # full steps
_DRAIN_WAIT = 0.5  # seconds for the steps in flight; what is not answered by then is computed again elsewhere


class Lane:
    """Keeps a stream to one worker, sends it steps and takes its results."""

    def __init__(
        self,
        transport: Transport,
        connector: Connector,
        waiting: WaitingQueue,
        suspects: Suspects,
        on_change: Callable[[], None],
        take_back: Callable[[list[Request]], None],
        is_taken: Callable[[int], bool],
        clock: Callable[[], float],
    ) -> None:
        """`waiting` is for the requests given to this worker that have no row yet.

        `on_change` is told when a step may be sent, `take_back` gets the requests of a lost worker, and
        `is_taken` says whether another lane has the worker's process of an epoch. `clock` gives seconds.
        """
        self.transport = transport
        self.address = transport.address
        self.waiting = waiting
        self.worker: WorkerDescription | None = None  # as it last described itself
        self.tally = Tally()
        self.breaker = Breaker(clock)
        self._connector = connector
        self._on_change = on_change
        self._take_back = take_back
        self._is_taken = is_taken
        self._clock = clock
        self._suspects = suspects
        self._watch = Watch(connector.options.step_timeout)
        self._held_back: asyncio.TimerHandle | None = None
        self._connection: Connection | None = None
        self._drain = Drain()
        self._retries = Retries()

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
        return self.worker is not None and self._drain.covers(self.worker.epoch)

    @property
    def takes_requests(self) -> bool:
        """Whether requests can be given to it."""
        return self.connected and not self.draining

    @property
    def idle(self) -> bool:
        """Whether no request is here, and nothing on its way."""
        aside = self.batcher.entrance.aside if self.batcher else []
        return not (self.rows_taken or aside or len(self.waiting) or self.steps_in_flight)

    @property
    def batcher(self) -> Batcher | None:
        """The books of the connected worker."""
        return self._connection.batcher if self._connection else None

    @property
    def steps_in_flight(self) -> int:
        """Steps sent and not answered."""
        return len(self._connection.in_flight) if self._connection else 0

    @property
    def rows_taken(self) -> int:
        """Rows in use."""
        return self.batcher.rows.taken if self.batcher else 0

    @property
    def overdue(self) -> float:
        """Seconds for which the worker has owed an answer; 0 when it owes none."""
        return self._watch.owed(self._connection.in_flight, self._clock()) if self._connection else 0.0

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

    def recall(self) -> None:
        """Those who wait here for a row are given back, to be placed anew."""
        if connection := self._connection:
            given = self.waiting.drain()
            for request in given:
                if request.pinned:
                    self.waiting.push(request)
            self._give_back(connection, [request for request in given if not request.pinned])

    def clear(self) -> None:
        """Everybody leaves, at the edge of the next step, and is given back. Needs a connected worker."""
        connection = self._connected()
        self._give_back(connection, self.waiting.drain() + connection.batcher.clear())

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
        now = self._clock()
        if wait := connection.pacing.hold_back(now):
            self._step_later(wait)
            return False
        step = connection.batcher.compose(self.waiting)
        self._give_back(connection, connection.batcher.settled())
        if step is None:
            return False
        if not connection.in_flight:
            self._watch.sent(now)
        connection.send(step, now)
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
        self._drain.begin(self.worker.epoch)
        log.info("worker_draining", address=self.address, worker=self.name)
        connection = self._connection
        if connection is None:
            self._drain.finish()
            return
        given = self.waiting.drain()
        self._drain.moved(len(given))
        self._give_back(connection, given)
        wait = _DRAIN_WAIT if connection.in_flight else 0
        asyncio.get_running_loop().call_later(wait, self._let_go, connection)
        self._on_change()

    def _let_go(self, connection: Connection) -> None:
        if self.draining:  # else it was undone in the meantime
            connection.stream.close()

    async def drained(self) -> int:
        """Returns when a worker that is `draining` has been let go: how many requests went elsewhere."""
        return await self._drain.done()

    def resume(self) -> None:
        """The worker is to be used again, if it was drained."""
        self._drain.undo()
        self.hurry()

    def keep(self, trace_ids: Sequence[int]) -> None:
        """The worker is to export these traces, though they were not sampled."""
        if batcher := self.batcher:
            batcher.notices.keep(trace_ids)

    def hurry(self) -> None:
        """There is news of the worker: connecting to it is tried again now."""
        self._retries.hurry()

    async def run(self) -> None:
        """Serves for ever: connects, steps, and after a loss gives the requests back and connects again."""
        while True:
            alone, cause = 0.0, ""
            try:
                await self._connect()
                self._retries.succeeded()
                await self._receive()
            except InternalError as error:
                cause = type(error).__name__
                if self._connection and not self.draining:
                    alone = self._lost(self._connection, error)
                else:
                    log.debug("worker_not_ready", address=self.address, error=str(error))
            finally:
                self._disconnect(cause)
            await self._retries.wait(alone)

    def _lost(self, connection: Connection, error: InternalError) -> float:
        """Seconds to leave the worker alone."""
        log.warning("worker_lost", address=self.address, error=str(error))
        if isinstance(error, WorkerTaken):
            return 0.0
        self.tally.losses += 1
        if isinstance(error, ProtocolError) and connection.remembering:
            connection.remembering.forget()
        self._suspects.worker_lost(self, connection.batcher, connection.in_flight, error)
        if alone := self.breaker.lost():
            log.error("worker_left_alone", address=self.address, seconds=alone)
        return alone

    async def close(self) -> None:
        """Lets go of the way to the worker, for good."""
        await self.transport.close()

    async def _connect(self) -> None:
        # Asked before opening: that takes the worker over from whoever has it.
        self.worker = worker = await self.transport.describe()
        self._watch.heard(self._clock())
        if self.draining:
            raise WorkerLost(f"{self.address}: drained")
        if self._is_taken(worker.epoch):
            raise WorkerLost(f"{self.address}: {worker.worker_id} is connected by another address already")
        self._connection = connection = await self._connector.open(self.transport, self.waiting)
        self.worker = connection.worker
        self.tally.connected()
        self._watch.connected(connection.worker.epoch, self._clock())
        self._on_change()

    async def _receive(self) -> None:
        """Takes answers, for as long as there is somebody to step, or steps to be answered."""
        connection = self._connected()
        watchdog = asyncio.create_task(self._keep_watch(connection))
        try:
            while connection.in_flight or not self.draining:
                result = await connection.stream.receive()
                if result.leaving:
                    self.drain()
                elif result.HasField("moved"):
                    self._watch.moved(connection.batcher.tiers, result.moved)
                    self.tally.moved(connection.batcher.tiers, result.moved)
                    connection.batcher.moved(result.moved)
                else:
                    self._answered(connection, result)
                self._on_change()
        finally:
            watchdog.cancel()

    def _answered(self, connection: Connection, result: StepResult) -> None:
        step, delivered = connection.take(result)
        self._suspects.answered()
        self._give_back(connection, connection.batcher.settle(result.step))
        now = self._clock()
        connection.learn(step, result, now)
        self._watch.answered(step, now)
        self.breaker.answered()
        self.tally.answered(step, delivered, result.forward_us + result.sample_us)
        self._connector.sessions.flush()

    async def _keep_watch(self, connection: Connection) -> None:
        """Breaks the stream when an answer is overdue, so that `receive` raises WorkerLost."""
        tiers = connection.batcher.tiers
        overdue = await self._watch.until_overdue(connection.in_flight, tiers, self._clock)
        log.error("worker_overdue", address=self.address, what=overdue)
        connection.stream.close()

    def _tell_timelines(self, requests: Sequence[Request], cause: str) -> None:
        if self.draining:
            for request in requests:
                request.timeline.lost_row(Loss.DRAINED)
            return
        # Lost since it was heard of last, whenever that was noticed.
        silent_ns = round(1e9 * (time.monotonic() - self.tally.last_result))
        for request in requests:
            request.timeline.lost_row(Loss.WORKER_LOST, cause, time.time_ns() - silent_ns)

    def _disconnect(self, cause: str) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        connection.stream.close()
        self.tally.ended(connection.batcher)
        requests = connection.batcher.evacuate() + self.waiting.drain()
        self._tell_timelines(requests, cause)
        if self.draining:
            self._drain.moved(len(requests))
            log.info("worker_drained", address=self.address, worker=self.name, moved=self._drain.finish())
        self._take_back(requests)
        self._on_change()
