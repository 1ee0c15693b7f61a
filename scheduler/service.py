"""The scheduler's gRPC service: one stream per gateway."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import structlog

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
from scheduler.session import Session

log = structlog.get_logger()


class SchedulerService(SchedulerServicer):
    """Translates streams to calls of the scheduler, all on its event loop."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    async def Connect(  # noqa: N802 - named by the protocol
        self, request_iterator: AsyncIterator[GatewayMessage], context: Any
    ) -> AsyncIterator[SchedulerMessage]:
        """Serves one gateway until either side ends the stream."""
        session = self._scheduler.sessions.open()
        log.info("gateway_connected", session=session.number)
        reader = asyncio.create_task(self._read(session, request_iterator))
        try:
            while message := await session.outbox.get():
                yield message
        finally:
            reader.cancel()
            self._scheduler.close(session)
            log.info("gateway_gone", session=session.number)

    async def Describe(self, request: DescribeRequest, context: Any) -> Description:  # noqa: N802
        """The state now."""
        return self._scheduler.describe()

    async def Warm(self, request: WarmRequest, context: Any) -> WarmReply:  # noqa: N802
        """Notes prompts for every worker."""
        self._scheduler.warm(request.prompts)
        return WarmReply()

    async def _read(self, session: Session, messages: AsyncIterator[GatewayMessage]) -> None:
        try:
            async for message in messages:
                for submit in message.submit:
                    self._scheduler.submit(session, submit)
                for request_id in message.cancel:
                    self._scheduler.cancel(session, request_id)
        finally:
            session.outbox.put_nowait(None)
