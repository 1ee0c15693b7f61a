"""A worker process without a model that takes as long as an H200 would, over real gRPC.

`python -m bench.simulation.stand_in ADDRESS NAME RECORD` serves at ADDRESS until SIGTERM, or until its
standard input ends, and then writes to the file RECORD what `record.py` reads: when its steps came, began and
ended, and in which of them each request was.
"""

import asyncio
import contextlib
import gc
import queue
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np

from batchyard.lifeline import end_with_parent
from batchyard.rpc import RpcServer
from bench.simulation.record import Record
from bench.simulation.worker import SimulatedWorker
from protos.packing import unpack_i32
from protos.step_pb2 import DescribeWorkerRequest, StepBatch, StepResult, WorkerDescription
from protos.step_pb2_grpc import WorkerServicer, add_WorkerServicer_to_server

SERVICE = "batchyard.internal.v1.Worker"
NUM_BLOCKS = 38_000  # what an H200 has beside llama-8b
VOCAB = 6144  # the demo model's, whose tokenizer the gateway has


class StandIn(WorkerServicer):
    """Serves one scheduler after another."""

    def __init__(self, name: str) -> None:
        self.record = Record()
        self._worker = SimulatedWorker(name, NUM_BLOCKS, vocab=VOCAB)

    async def Describe(  # noqa: N802 - named by the protocol
        self, request: DescribeWorkerRequest, context: Any
    ) -> WorkerDescription:
        """At once."""
        return self._worker.description

    async def Steps(  # noqa: N802 - named by the protocol
        self, request_iterator: AsyncIterator[StepBatch], context: Any
    ) -> AsyncIterator[StepResult]:
        """Executes steps in order, each for as long as it takes."""
        self._worker.reset()
        await context.send_initial_metadata(())
        device = _Device(asyncio.get_running_loop())
        feeding = asyncio.create_task(self._feed(request_iterator, device))
        try:
            while True:
                yield await device.answers.get()
        finally:
            feeding.cancel()
            device.stop()
            with contextlib.suppress(asyncio.CancelledError):
                await feeding

    async def _feed(self, batches: AsyncIterator[StepBatch], device: "_Device") -> None:
        async for batch in batches:
            arrived = time.perf_counter()
            result, seconds = self._worker.execute(batch)
            start, end = device.take(arrived, seconds, result)
            result.queue_us = max(0, round(1e6 * (start - arrived)))
            entered = [(new.row, new.request_id) for new in batch.new_rows]
            self.record.step(arrived, start, end, entered, unpack_i32(result.rows))


class _Device:
    """Is busy with one step after another. A thread waits: an event loop's timers are coarse."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.answers: asyncio.Queue[StepResult] = asyncio.Queue()
        self._loop = loop
        self._free_at = 0.0
        self._due: queue.SimpleQueue[tuple[float, StepResult] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="device", daemon=True).start()

    def take(self, arrived: float, seconds: float, result: StepResult) -> tuple[float, float]:
        """When a step begins and ends; `result` is answered then."""
        start = max(self._free_at, arrived)
        self._free_at = start + seconds
        self._due.put((self._free_at, result))
        return start, self._free_at

    def stop(self) -> None:
        """Answers no more."""
        self._due.put(None)

    def _run(self) -> None:
        while due := self._due.get():
            at, result = due
            time.sleep(max(0.0, at - time.perf_counter()))
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self.answers.put_nowait, result)


async def run(address: str, name: str, record: Path) -> None:
    """Serves until told to end."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server, stand_in = RpcServer(address), StandIn(name)
    server.add(add_WorkerServicer_to_server, stand_in, SERVICE)
    await server.start()
    await server.set_serving(True)
    gc.freeze()
    await stop.wait()
    await server.stop(0)
    stand_in.record.save(record)


def main() -> None:
    """Reads the command line."""
    address, name, record = sys.argv[1:]
    end_with_parent(0)
    np.seterr(all="raise")
    asyncio.run(run(address, name, Path(record)))


if __name__ == "__main__":
    main()
