"""One stream to the active scheduler, for as long as it lasts."""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

import grpc.aio
import structlog

from batchyard.errors import BatchyardError, ProtocolError, SchedulerLost
from batchyard.spans import pack_trace_ids
from gateway.live import LiveRequests
from protos.scheduling_pb2 import GatewayMessage, SchedulerMessage

if TYPE_CHECKING:
    Call = grpc.aio.StreamStreamCall[GatewayMessage, SchedulerMessage]

log = structlog.get_logger()

_AT_ONCE = 256  # requests in one message


class SchedulerStream:
    """Carries every live request, from the first message on.

    submits and cancels   gathered while a message is being written, so they leave in batches
    tokens                one message per step for all requests, dealt out to their subscriptions
    """

    def __init__(self, call: "Call", live: LiveRequests) -> None:
        """Submits all of `live`; nothing is sent before `run`."""
        self.heard = False
        """Whether a message has come."""
        self._call = call
        self._live = live
        self._submits = {request.id: None for request in live}  # not sent yet
        self._cancels: list[int] = []  # not sent yet
        self._keeps: list[bytes] = []  # traces, likewise
        self._work = asyncio.Event()  # set while there is something to send
        self._replaced = asyncio.Event()
        if self._submits:
            self._work.set()

    def submit(self, submit_id: int) -> None:
        """Sends a live request soon."""
        self._submits[submit_id] = None
        self._work.set()

    def cancel(self, submit_id: int) -> None:
        """A request is no longer live."""
        if submit_id in self._submits:
            del self._submits[submit_id]
        else:
            self._cancels.append(submit_id)
            self._work.set()

    def keep(self, trace_ids: Sequence[int]) -> None:
        """These traces are to be exported, though they were not sampled."""
        self._keeps += pack_trace_ids(trace_ids)
        self._work.set()

    def replace(self) -> None:
        """Another stream carries the requests from now on: what still comes over this one is not heard."""
        self._replaced.set()

    async def run(self) -> str:
        """Serves until the stream breaks or is replaced. Returns why."""
        tasks = [asyncio.create_task(part) for part in (self._replacement(), self._receive(), self._send())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return _why(next(task for task in tasks if task.done()))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _replacement(self) -> None:
        await self._replaced.wait()
        raise SchedulerLost("another scheduler is the active one")

    async def _send(self) -> None:
        while True:
            await self._work.wait()
            now = asyncio.get_running_loop().time()
            ids = list(self._submits)[:_AT_ONCE]
            for submit_id in ids:
                del self._submits[submit_id]
            requests = [request for submit_id in ids if (request := self._live.get(submit_id))]
            message = GatewayMessage(
                submit=[request.to_submit(now) for request in requests],
                cancel=self._cancels,
                keep=self._keeps,
            )
            self._cancels.clear()
            self._keeps.clear()
            if not self._submits:
                self._work.clear()
            await self._call.write(message)

    async def _receive(self) -> None:
        async for message in self._call:
            if self._replaced.is_set():
                return
            try:
                self._live.deal(message)
            except ValueError as error:
                raise ProtocolError(f"the scheduler's message is malformed: {error}") from error
            self.heard = True
        raise SchedulerLost("the scheduler ended the stream")


def _why(ended: asyncio.Task[None]) -> str:
    if ended.cancelled():
        return "the stream was cancelled"
    error = ended.exception()
    if not isinstance(error, grpc.aio.AioRpcError | asyncio.InvalidStateError | BatchyardError):
        log.error("the stream to the scheduler failed", exc_info=error)
    return str(error.details() if isinstance(error, grpc.aio.AioRpcError) else error)
