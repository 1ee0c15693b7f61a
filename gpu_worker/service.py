"""The worker's gRPC service: streams of steps onto the engine."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import grpc
import structlog

from batchyard.fence import fence_in, metadata
from gpu_worker.engine import EndKind, StepEngine, StepStream
from gpu_worker.rows import RowTable
from protos.packing import pack_u32
from protos.step_pb2 import DescribeWorkerRequest, StepBatch, StepResult, WorkerDescription
from protos.step_pb2_grpc import WorkerServicer

if TYPE_CHECKING:
    from protos.step_pb2_grpc import _MaybeAsyncIterator, _ServicerContext

log = structlog.get_logger()

NAME = "batchyard.internal.v1.Worker"

_CODES = {
    EndKind.TAKEN_OVER: grpc.StatusCode.ABORTED,
    EndKind.STOPPED: grpc.StatusCode.UNAVAILABLE,
    EndKind.REFUSED: grpc.StatusCode.INVALID_ARGUMENT,
    EndKind.FAILED: grpc.StatusCode.INTERNAL,
}


class WorkerService(WorkerServicer):
    """Answers UNAVAILABLE until it is given an engine."""

    def __init__(self) -> None:
        self._engine: StepEngine | None = None
        self._description: WorkerDescription | None = None
        self._rows: RowTable | None = None
        self._fence = 0  # the highest that a stream had

    def set_ready(self, engine: StepEngine, description: WorkerDescription, rows: RowTable) -> None:
        """The worker can be used from now on. Block generations are read from `rows`, where they change."""
        self._engine = engine
        self._description = description
        self._rows = rows

    def set_not_ready(self) -> None:
        """Until `set_ready`, again."""
        self._engine = self._description = self._rows = None

    async def Describe(  # noqa: N802 - named by the protocol
        self, request: DescribeWorkerRequest, context: "_ServicerContext"
    ) -> WorkerDescription:
        """What this worker is, and how often each of its blocks has been written."""
        if self._description is None or self._rows is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the worker is still loading")
        description = WorkerDescription()
        description.CopyFrom(self._description)
        description.block_generations = pack_u32(self._rows.block_generations)
        description.fence = self._fence
        description.stepped = self._engine is not None and self._engine.has_stream
        return description

    async def Steps(  # noqa: N802 - named by the protocol
        self, request_iterator: "_MaybeAsyncIterator[StepBatch]", context: "_ServicerContext"
    ) -> AsyncIterator[StepResult]:
        """Executes the steps of one scheduler, until it ends the stream or another one takes over.

        A scheduler that was active before the one seen last gets no stream.
        """
        if self._engine is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the worker is still loading")
        if self._engine.leaving:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the worker is leaving")
        fence = fence_in(context.invocation_metadata()) or 0
        if fence < self._fence:
            log.warning("stream_refused", fence=fence, seen=self._fence)
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION, f"fence {fence} is outranked by {self._fence}"
            )
        self._fence = fence
        stream = await self._engine.open()
        await context.send_initial_metadata(metadata(fence))  # type: ignore[misc] # the stub mixes both APIs
        feeding = asyncio.create_task(_feed(request_iterator, stream))
        try:
            while isinstance(item := await stream.next(), StepResult):
                yield item
            if item.kind in _CODES:
                await context.abort(_CODES[item.kind], item.message)
        finally:
            stream.close()
            feeding.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await feeding


async def _feed(batches: "_MaybeAsyncIterator[StepBatch]", stream: StepStream) -> None:
    async for batch in batches:
        stream.submit(batch)
    stream.submit_end()
