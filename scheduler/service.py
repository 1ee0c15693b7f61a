"""The scheduler's gRPC service: one stream per gateway."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import structlog

from batchyard.fence import metadata
from protos.scheduling_pb2 import (
    DescribeRequest,
    Description,
    GatewayMessage,
    SchedulerMessage,
    WarmReply,
    WarmRequest,
)
from protos.scheduling_pb2_grpc import SchedulerServicer
from scheduler.core import Scheduler
from scheduler.lease import Lease
from scheduler.session import Session

log = structlog.get_logger()


class SchedulerService(SchedulerServicer):
    """Translates streams to calls of the scheduler, all on its event loop."""

    def __init__(self, scheduler: Scheduler, lease: Lease) -> None:
        """`lease` says when gateways are served."""
        self._scheduler = scheduler
        self._lease = lease

    async def Connect(  # noqa: N802 - named by the protocol
        self, request_iterator: AsyncIterator[GatewayMessage], context: Any
    ) -> AsyncIterator[SchedulerMessage]:
        """Serves one gateway while this scheduler is the active one, until either side ends the stream."""
        fence = await self._lease.held()
        await context.send_initial_metadata(metadata(fence))
        session = self._scheduler.sessions.open()
        log.info("gateway_connected", session=session.number)
        tasks = [
            asyncio.create_task(self._read(session, request_iterator, fence)),
            asyncio.create_task(self._dismiss(session, fence)),
        ]
        try:
            while message := await session.outbox.get():
                yield message
        finally:
            for task in tasks:
                task.cancel()
            self._scheduler.close(session)
            log.info("gateway_gone", session=session.number)

    async def Describe(self, request: DescribeRequest, context: Any) -> Description:  # noqa: N802
        """The state now."""
        description = self._scheduler.describe()
        description.fence = self._lease.fence
        return description

    async def Warm(self, request: WarmRequest, context: Any) -> WarmReply:  # noqa: N802
        """Notes prompts for every worker."""
        self._scheduler.warm(request.prompts)
        return WarmReply()

    async def _read(self, session: Session, messages: AsyncIterator[GatewayMessage], fence: int) -> None:
        try:
            async for message in messages:
                if self._lease.fence != fence:
                    return
                for submit in message.submit:
                    self._scheduler.submit(session, submit)
                for request_id in message.cancel:
                    self._scheduler.cancel(session, request_id)
        finally:
            session.outbox.put_nowait(None)

    async def _dismiss(self, session: Session, fence: int) -> None:
        """Sends the gateway, and its requests, to whoever is active next."""
        await self._lease.ended(fence)
        self._scheduler.close(session)
        session.outbox.put_nowait(None)
