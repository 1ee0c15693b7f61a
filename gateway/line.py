"""The way to one scheduler, be it the active one or a standby."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import grpc.aio
import structlog

from batchyard.errors import SchedulerLost
from batchyard.fence import fence_in
from batchyard.rpc import connect
from batchyard.tls import TlsFiles
from protos.scheduling_pb2 import DescribeRequest, Description, WarmPrompt, WarmRequest
from protos.scheduling_pb2_grpc import SchedulerStub

if TYPE_CHECKING:
    from gateway.scheduler_stream import Call

log = structlog.get_logger()

_FIRST_DELAY_S = 0.05  # before a broken stream is opened again; doubles with every stream that does not last
_LAST_DELAY_S = 0.5
LASTED_S = 5.0


class Line:
    """Keeps a stream to one scheduler open."""

    def __init__(
        self,
        address: str,
        warm_prompts: Sequence[WarmPrompt],
        use: "Callable[[Line, Call, int], Awaitable[None]]",
        tls: TlsFiles | None = None,
    ) -> None:
        """`use` is given each stream whose scheduler is active, with its fence, and returns when it is over.

        A scheduler is told of `warm_prompts` before there is a stream to it.
        """
        self.address = address
        self._warm_prompts = warm_prompts
        self._use = use
        self._channel = connect(address, tls)
        self._stub = SchedulerStub(self._channel)

    async def run(self) -> None:
        """Runs until cancelled."""
        delay = _FIRST_DELAY_S
        while True:
            await self._channel.channel_ready()
            opened = asyncio.get_running_loop().time()
            if await self._tell_warm_prompts():
                await self._hold_stream()
            if asyncio.get_running_loop().time() - opened > LASTED_S:
                delay = _FIRST_DELAY_S
            await asyncio.sleep(delay)
            delay = min(2 * delay, _LAST_DELAY_S)

    async def describe(self, timeout_s: float, max_tenants: int) -> Description:
        """The scheduler's state. Raises SchedulerLost where it does not answer within `timeout_s` seconds."""
        try:
            return await self._stub.Describe(DescribeRequest(max_tenants=max_tenants), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            log.debug("the scheduler does not answer", address=self.address, reason=error.details())
            raise SchedulerLost("the scheduler does not answer") from error

    async def close(self) -> None:
        """Lets go of the scheduler."""
        await self._channel.close()

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
        """Opens a stream, waits until its scheduler is the active one, and has it used."""
        call = self._stub.Connect()
        try:
            fence = fence_in(await call.initial_metadata())
            if fence is None:
                log.debug("a scheduler takes no stream", address=self.address, reason=await call.details())
            else:
                await self._use(self, call, fence)
        finally:
            call.cancel()
