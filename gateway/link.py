"""The gateway's one stream to the scheduler, over which all its requests go.

    submits and cancels   gathered while a message is being written, so they leave in batches
    tokens                one message per step for all requests, dealt out to their subscriptions

The stream is opened anew whenever it breaks; the requests that were on it end with SchedulerLost.
"""

import asyncio
import itertools
from collections.abc import Sequence
from types import TracebackType

import grpc.aio
import structlog

from batchyard.errors import BatchyardError, ProtocolError, SchedulerLost
from batchyard.rpc import connect
from batchyard.tls import TlsFiles
from gateway.subscription import Subscription, Subscriptions
from protos.scheduling_pb2 import (
    DescribeRequest,
    Description,
    GatewayMessage,
    SchedulerMessage,
    Submit,
    WarmPrompt,
    WarmRequest,
)
from protos.scheduling_pb2_grpc import SchedulerStub

log = structlog.get_logger()

_FIRST_DELAY_S = 0.1  # before a broken stream is opened again; doubles with every stream that does not last
_LAST_DELAY_S = 2.0
_LASTED_S = 5.0


class SchedulerLink:
    """Submits requests and deals out what comes back. An asynchronous context manager; enter it once."""

    def __init__(
        self, address: str, warm_prompts: Sequence[WarmPrompt] = (), tls: TlsFiles | None = None
    ) -> None:
        """`address` is the scheduler's, host:port or unix:/path. Nothing is sent before `__aenter__`.

        A scheduler is told of `warm_prompts` before there is a stream to it.
        """
        self._address = address
        self._warm_prompts = warm_prompts
        self._channel = connect(address, tls)
        self._stub = SchedulerStub(self._channel)
        self._ids = itertools.count(1)
        self._live = Subscriptions()
        self._submits: dict[int, Submit] = {}  # not sent yet
        self._cancels: list[int] = []  # not sent yet
        self._work = asyncio.Event()  # set while there is something to send
        self._open = asyncio.Event()  # set while there is a stream
        self._running: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "SchedulerLink":
        """Starts to connect; does not wait for it."""
        self._running = asyncio.create_task(self._keep_open())
        return self

    async def __aexit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Ends the stream, and with it the requests that are still on it: they raise SchedulerLost."""
        if self._running:
            self._running.cancel()
            await asyncio.wait([self._running])
        await self._channel.close()

    @property
    def connected(self) -> bool:
        """Whether there is a stream to the scheduler now."""
        return self._open.is_set()

    async def wait_connected(self) -> None:
        """Returns when there is a stream to the scheduler."""
        await self._open.wait()

    @property
    def num_live(self) -> int:
        """Requests submitted whose end is not known."""
        return len(self._live)

    def submit(self, request: Submit) -> Subscription:
        """Sends a request, under an id set here. Raises SchedulerLost at once where there is no stream."""
        self._require_stream()
        request.id = next(self._ids)
        self._submits[request.id] = request
        self._work.set()
        return self._live.add(request.id, self._end)

    async def describe(self, timeout_s: float = 2.0) -> Description:
        """The scheduler's state. Raises SchedulerLost where it does not answer within `timeout_s` seconds."""
        self._require_stream()
        try:
            return await self._stub.Describe(DescribeRequest(), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            log.debug("the scheduler does not answer", reason=error.details())
            raise SchedulerLost("the scheduler does not answer") from error

    def _require_stream(self) -> None:
        if not self.connected:
            raise SchedulerLost("the scheduler cannot be reached now")

    def _end(self, submit_id: int) -> None:
        if not self._live.remove(submit_id):
            return  # it ended by itself
        if self._submits.pop(submit_id, None) is None:
            self._cancels.append(submit_id)
            self._work.set()

    async def _keep_open(self) -> None:
        delay = _FIRST_DELAY_S
        while True:
            await self._channel.channel_ready()
            opened = asyncio.get_running_loop().time()
            if await self._tell_warm_prompts():
                await self._hold_stream()
            if asyncio.get_running_loop().time() - opened > _LASTED_S:
                delay = _FIRST_DELAY_S
            await asyncio.sleep(delay)
            delay = min(2 * delay, _LAST_DELAY_S)

    async def _tell_warm_prompts(self) -> bool:
        """Whether the scheduler knows them."""
        if self._warm_prompts:
            try:
                await self._stub.Warm(WarmRequest(prompts=self._warm_prompts))
            except grpc.aio.AioRpcError as error:
                log.warning("the scheduler takes no warm prompts", reason=error.details())
                return False
        return True

    async def _hold_stream(self) -> None:
        """Opens a stream and uses it until it breaks."""
        call = self._stub.Connect()
        self._open.set()
        log.info("connected to the scheduler", address=self._address)
        tasks = [asyncio.create_task(self._receive(call)), asyncio.create_task(self._send(call))]
        reason = "the gateway is closing"
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            reason = self._why(next(task for task in tasks if task.done()).exception())
        finally:
            self._open.clear()
            self._submits.clear()
            self._cancels.clear()
            self._live.fail_all(SchedulerLost(f"lost the scheduler while the request ran: {reason}"))
            call.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _send(self, call: "grpc.aio.StreamStreamCall[GatewayMessage, SchedulerMessage]") -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            message = GatewayMessage(submit=self._submits.values(), cancel=self._cancels)
            self._submits.clear()
            self._cancels.clear()
            await call.write(message)

    async def _receive(self, call: "grpc.aio.StreamStreamCall[GatewayMessage, SchedulerMessage]") -> None:
        async for message in call:
            try:
                self._live.deal(message)
            except ValueError as error:
                raise ProtocolError(f"the scheduler's message is malformed: {error}") from error
        raise SchedulerLost("the scheduler ended the stream")

    def _why(self, error: BaseException | None) -> str:
        """What clients are told. gRPC's own words, with paths and addresses in them, are for the log."""
        reason = str(error.details() if isinstance(error, grpc.aio.AioRpcError) else error)
        foreseen = isinstance(error, grpc.aio.AioRpcError | asyncio.InvalidStateError | BatchyardError)
        log.warning(
            "lost the scheduler", address=self._address, reason=reason, exc_info=None if foreseen else error
        )
        return reason if isinstance(error, BatchyardError) else "the connection broke"
