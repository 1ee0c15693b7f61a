"""How the scheduler reaches a worker: an interface, and gRPC. Tests put a worker in the same process."""

import asyncio
import contextlib
from typing import TYPE_CHECKING, Protocol

import grpc.aio

from batchyard.errors import WorkerLost, WorkerTaken
from batchyard.rpc import connect
from protos.step_pb2 import DescribeWorkerRequest, StepBatch, StepResult, WorkerDescription
from protos.step_pb2_grpc import WorkerStub

if TYPE_CHECKING:
    from protos.step_pb2_grpc import WorkerAsyncStub


class StepStream(Protocol):
    """One stream of steps. Results come in the order of the steps."""

    def send(self, batch: StepBatch) -> None:
        """Puts a step on its way; never waits."""
        ...

    async def receive(self) -> StepResult:
        """The next result. Raises WorkerLost when the stream is broken, WorkerTaken by another stream."""
        ...

    def close(self) -> None:
        """Ends the stream."""
        ...


class Transport(Protocol):
    """A way to one worker."""

    @property
    def address(self) -> str:
        """For logs."""
        ...

    async def describe(self) -> WorkerDescription:
        """What the worker is. Raises WorkerLost when it cannot tell yet, or any more."""
        ...

    async def open(self) -> StepStream:
        """A stream that has taken the worker over from any other. Raises WorkerLost when it cannot."""
        ...

    async def close(self) -> None:
        """Lets go of the worker."""
        ...


class GrpcTransport:
    """A worker at host:port or unix:/path."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel = connect(address)
        self._stub = WorkerStub(self._channel)

    async def describe(self) -> WorkerDescription:
        """Asks once the worker can be reached, however long that takes."""
        try:
            return await self._stub.Describe(DescribeWorkerRequest(), wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            raise WorkerLost(f"{self.address}: {error.code().name}: {error.details()}") from error

    async def open(self) -> StepStream:
        stream = _GrpcStream(self.address, self._stub)
        await stream.opened()
        return stream

    async def close(self) -> None:
        await self._channel.close()


class _GrpcStream:
    def __init__(self, address: str, stub: "WorkerAsyncStub") -> None:
        self._address = address
        self._outgoing: asyncio.Queue[StepBatch] = asyncio.Queue()
        # Waiting here, in the channel, is what makes a worker that starts be noticed at once.
        self._call = stub.Steps(wait_for_ready=True)
        self._writer: asyncio.Task[None] | None = None

    async def opened(self) -> None:
        try:
            await self._call.wait_for_connection()
        except grpc.aio.AioRpcError as error:
            raise WorkerLost(f"{self._address}: {error.code().name}: {error.details()}") from error
        self._writer = asyncio.create_task(self._write())

    def send(self, batch: StepBatch) -> None:
        self._outgoing.put_nowait(batch)

    async def receive(self) -> StepResult:
        try:
            result = await self._call.read()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            raise await self._lost() from error
        except asyncio.CancelledError:
            # Said of the call when it was closed here, and of us when our task is cancelled.
            if self._call.cancelled() and not _being_cancelled():
                raise WorkerLost(f"{self._address}: closed") from None
            raise
        if not isinstance(result, StepResult):  # the end of the stream
            raise await self._lost()
        return result

    def close(self) -> None:
        if self._writer:
            self._writer.cancel()
        self._call.cancel()

    async def _lost(self) -> WorkerLost:
        status, details = await self._call.code(), await self._call.details()
        error = WorkerTaken if status == grpc.StatusCode.ABORTED else WorkerLost
        return error(f"{self._address}: {status.name}: {details}")

    async def _write(self) -> None:
        # `receive` is who notices and tells that the stream is broken.
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while True:
                await self._call.write(await self._outgoing.get())


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
