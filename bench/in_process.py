"""A worker in this process, driven by a scheduler in this process: the step protocol without gRPC."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from batchyard.config import WorkerSettings
from batchyard.errors import WorkerLost
from gpu_worker import engine
from gpu_worker.engine import StepEngine
from gpu_worker.metrics import WorkerMetrics
from gpu_worker.rows import RowTable
from gpu_worker.startup import start_runner
from gpu_worker.threads import single_thread
from protos.packing import pack_u32
from protos.step_pb2 import StepBatch, StepResult, WorkerDescription


class InProcessTransport:
    """A `Transport`: messages are handed over as they are, results come from the worker's threads."""

    address = "in-process"

    def __init__(self, engine: StepEngine, description: WorkerDescription, rows: RowTable) -> None:
        self._engine = engine
        self._description = description
        self._rows = rows

    async def describe(self) -> WorkerDescription:
        description = WorkerDescription()
        description.CopyFrom(self._description)
        description.block_generations = pack_u32(self._rows.block_generations)
        return description

    async def open(self) -> "InProcessStream":
        return InProcessStream(await self._engine.open())

    async def close(self) -> None:
        pass


class InProcessStream:
    """A `StepStream` around the worker's."""

    def __init__(self, stream: engine.StepStream) -> None:
        self._stream = stream

    def send(self, batch: StepBatch) -> None:
        self._stream.submit(batch)

    async def receive(self) -> StepResult:
        item = await self._stream.next()
        if isinstance(item, StepResult):
            return item
        raise WorkerLost(f"in-process: {item.kind.name}: {item.message}")

    def close(self) -> None:
        self._stream.close()


@asynccontextmanager
async def worker_in_process(settings: WorkerSettings) -> AsyncIterator[InProcessTransport]:
    """A warm worker for the time of the block, on threads of its own as in the worker process."""
    step_thread = single_thread("steps")
    try:
        loading = step_thread.submit(start_runner, settings, lambda: None)
        started = await asyncio.wrap_future(loading)
        runner, description = started.runner, started.description
        engine = StepEngine(runner, [WorkerMetrics(description.num_blocks)], step_thread)
        try:
            yield InProcessTransport(engine, description, runner.rows)
        finally:
            await asyncio.to_thread(engine.shutdown)
    finally:
        step_thread.shutdown()
