"""Streams of steps over one runner: threads, order, and who owns the worker.

event loop ──submit──▶ step thread ──launched──▶ result thread ──result──▶ event loop
                       executes in order,        waits for the device,
                       never waits               packs, observes
                            └──moves──▶ two more threads, if there is a host tier ──news──▶ event loop
"""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from enum import Enum, auto
from typing import NamedTuple

import structlog
import torch

from batchyard.errors import ProtocolError
from gpu_worker.launched import Launched
from gpu_worker.mover import Mover
from gpu_worker.observers import FinishedStep, StepObserver
from gpu_worker.runner import Runner
from gpu_worker.threads import single_thread
from protos.step_pb2 import StepBatch, StepResult

log = structlog.get_logger()

STUCK_S = 60.0  # seconds: no step takes as long, and no scheduler waits as long


class EndKind(Enum):
    """Why a stream is over."""

    DONE = auto()  # the scheduler sends no more, and everything is answered
    TAKEN_OVER = auto()
    REFUSED = auto()  # a batch was not allowed
    STOPPED = auto()  # the worker ends
    FAILED = auto()


class Broken(Enum):
    """What the worker cannot go on after."""

    MEMORY = auto()  # the device has none left for a step, whatever was freed
    DEVICE = auto()  # it failed, and what was on it is lost
    STUCK = auto()  # a step, or a move, does not end


class StreamEnd(NamedTuple):
    """The last item of a stream."""

    kind: EndKind
    message: str = ""


class StepStream:
    """The steps of one scheduler. Methods are for the event loop that opened it."""

    def __init__(self, engine: "StepEngine") -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._outbox: asyncio.Queue[StepResult | StreamEnd] = asyncio.Queue()
        self.over = False
        """Steps that have not begun are dropped."""

    def submit(self, batch: StepBatch) -> None:
        """Queues a step."""
        self._engine.run(self, batch, time.perf_counter_ns())

    def submit_end(self) -> None:
        """No more steps come: the stream ends when all are answered."""
        self._engine.run_end(self)

    async def next(self) -> StepResult | StreamEnd:
        """The next result in order, or how it ended."""
        return await self._outbox.get()

    def close(self) -> None:
        """Gives the worker up, if it is still this stream's: all rows are freed."""
        self.over = True
        self._engine.release(self)

    def end(self, end: StreamEnd) -> None:
        """Ends the stream now, with steps unanswered. For any thread."""
        self.over = True
        self.deliver(end)

    def deliver(self, item: StepResult | StreamEnd) -> None:
        """Puts an item into the outbox. For any thread."""
        self._loop.call_soon_threadsafe(self._outbox.put_nowait, item)


class StepEngine:
    """Owns the runner. One stream at a time has it."""

    def __init__(
        self,
        runner: Runner,
        observers: Sequence[StepObserver],
        step_thread: ThreadPoolExecutor,
        mover: Mover | None = None,
    ) -> None:
        """step_thread: on which the runner was made. mover: of its host tier, if it has one."""
        self._runner = runner
        self._observers = observers
        self._step_thread = step_thread
        self._mover = mover
        self._result_thread = single_thread("results")
        self._stream: StepStream | None = None
        self._released = asyncio.Event()
        self.leaving = False
        """No scheduler should take the worker over any more."""
        self.broken: Future[Broken] = Future()
        """Has a result once this engine is of no use any more."""

    @property
    def has_stream(self) -> bool:
        """Whether a scheduler has the worker now."""
        return self._stream is not None

    async def open(self) -> StepStream:
        """A stream that takes the worker over: the one before has ended, and all rows are free."""
        if self._stream is not None:
            self._stream.end(StreamEnd(EndKind.TAKEN_OVER, "another stream has taken this worker over"))
        stream = self._stream = StepStream(self)
        reset = asyncio.wrap_future(self._step_thread.submit(self._reset))
        done, _ = await asyncio.wait([reset], timeout=STUCK_S)
        if not done:
            self._give_up(Broken.STUCK)
        await reset
        return stream

    def release(self, stream: StepStream) -> None:
        """Frees all rows, unless `stream` no longer has the worker."""
        if self._stream is stream:
            self._stream = None
            self._released.set()
            self._step_thread.submit(self._reset)

    async def leave(self, seconds: float) -> None:
        """Has the scheduler take its requests elsewhere. Returns when it has ended its stream, or is late."""
        self.leaving = True
        if self._stream is None:
            return
        self._released.clear()
        self._stream.deliver(StepResult(leaving=True))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._released.wait(), seconds)

    async def responds(self, seconds: float) -> bool:
        """Whether a step that came now would begin, and those before it be answered, within `seconds`."""
        passed = asyncio.Event()
        loop = asyncio.get_running_loop()

        def tell() -> None:
            loop.call_soon_threadsafe(passed.set)

        self._step_thread.submit(self._result_thread.submit, tell)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(passed.wait(), seconds)
        return passed.is_set()

    def end_stream(self) -> None:
        """The worker is about to end: so does the stream, once what it submitted is answered."""
        if self._stream is not None:
            end = StreamEnd(EndKind.STOPPED, "the worker is shutting down")
            self._step_thread.submit(self._pass_on, self._stream, end)

    def run(self, stream: StepStream, batch: StepBatch, arrived_ns: int) -> None:
        """Queues a step of `stream`."""
        self._step_thread.submit(self._execute, stream, batch, arrived_ns)

    def run_end(self, stream: StepStream) -> None:
        """Queues the end of `stream`, behind its steps."""
        self._step_thread.submit(self._pass_on, stream, StreamEnd(EndKind.DONE))

    def shutdown(self) -> None:
        """Waits for the steps that have begun; the others are dropped. The step thread lives on."""
        if self._stream is not None:
            self._stream.over, self._stream = True, None
        self._step_thread.submit(lambda: None).result()
        self._result_thread.shutdown()
        del self._runner  # streams may outlive us, and its memory is wanted
        if self._mover:
            self._mover.shutdown()

    def _reset(self) -> None:
        if self._mover:
            self._mover.drain()
        self._runner.reset()
        for observer in self._observers:
            self._result_thread.submit(observer.reset)

    def _execute(self, stream: StepStream, batch: StepBatch, arrived_ns: int) -> None:
        if stream.over:
            return
        try:
            launched = self._runner.execute(batch, arrived_ns)
        except ProtocolError as error:
            log.warning("step_refused", step=batch.step, error=str(error))
            self._pass_on(stream, StreamEnd(EndKind.REFUSED, str(error)))
        except Exception as error:
            self._pass_on(stream, self._failure(batch, error))
        else:
            self._result_thread.submit(self._answer, stream, batch, launched)
            if self._mover:
                self._mover.start(
                    batch, stream.deliver, lambda error: stream.end(self._failure(batch, error))
                )

    def _pass_on(self, stream: StepStream, end: StreamEnd) -> None:
        """Ends `stream` behind the results it still gets; nothing more of it is executed."""
        stream.over = True
        self._result_thread.submit(stream.deliver, end)

    def _answer(self, stream: StepStream, batch: StepBatch, launched: Launched) -> None:
        try:
            result, times = launched.result()
            stream.deliver(result)
            finished = FinishedStep(batch, result, times, launched.load)
            for observer in self._observers:
                observer.observe(finished)
        except Exception as error:
            stream.end(self._failure(batch, error))

    def _failure(self, batch: StepBatch, error: Exception) -> StreamEnd:
        log.error("step_failed", step=batch.step, exc_info=error)
        if isinstance(error, torch.OutOfMemoryError):
            self._give_up(Broken.MEMORY)
        elif isinstance(error, torch.AcceleratorError):
            self._give_up(Broken.DEVICE)
        return StreamEnd(EndKind.FAILED, f"step {batch.step} failed: {type(error).__name__}: {error}")

    def _give_up(self, why: Broken) -> None:
        # Several threads may find out. Nothing that went wrong is kept: it holds on to tensors.
        with contextlib.suppress(InvalidStateError):
            self.broken.set_result(why)
