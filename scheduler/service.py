"""The scheduler's gRPC service: one stream per gateway, and one per worker that registers."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import structlog

from batchyard.errors import UnknownWorker, WorkerRefused
from batchyard.fence import metadata
from batchyard.spans import unpack_trace_ids
from protos.scheduling_pb2 import (
    DescribeRequest,
    Description,
    DrainReply,
    DrainRequest,
    GatewayMessage,
    Registered,
    Registration,
    SchedulerMessage,
    WarmReply,
    WarmRequest,
)
from protos.scheduling_pb2_grpc import SchedulerServicer
from scheduler.core import Scheduler
from scheduler.lease import Lease
from scheduler.registry import Registry, address_from
from scheduler.session import Session
from scheduler.state import describe_tenants

log = structlog.get_logger()


class SchedulerService(SchedulerServicer):
    """Translates streams to calls of the scheduler, all on its event loop."""

    def __init__(self, scheduler: Scheduler, registry: Registry, lease: Lease) -> None:
        """`lease` says when gateways are served. Workers register with a standby as well."""
        self._scheduler = scheduler
        self._registry = registry
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
        if request.max_tenants > 0:
            describe_tenants(description, self._scheduler.tenants, request.max_tenants)
        return description

    async def Warm(self, request: WarmRequest, context: Any) -> WarmReply:  # noqa: N802
        """Notes prompts for every worker."""
        self._scheduler.warm(request.prompts)
        return WarmReply()

    async def Register(  # noqa: N802
        self, request_iterator: AsyncIterator[Registration], context: Any
    ) -> AsyncIterator[Registered]:
        """Holds a worker's lease while its beats come; ends the stream when they came too late."""
        address = ""
        async for message in request_iterator:
            if message.HasField("worker"):
                try:
                    address = address_from(message.address, context.peer())
                    self._registry.register(address, message.worker)
                except WorkerRefused as error:
                    log.error("worker_refused", address=address, error=str(error))
                    await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
            elif not self._registry.renew(address):
                return
            yield Registered(lease_ms=round(1000 * self._registry.lease_s))

    async def Drain(self, request: DrainRequest, context: Any) -> DrainReply:  # noqa: N802
        """Lets a worker go, or takes it on again. A standby has none, whatever it had before."""
        if not self._lease.fence:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "it is a standby")
        try:
            lane = self._scheduler.fleet.find(request.worker)
        except UnknownWorker as error:
            await context.abort(grpc.StatusCode.NOT_FOUND, str(error))
        reply = DrainReply(worker_id=lane.name, address=lane.address)
        if request.undo:
            lane.resume()
        else:
            lane.drain()
            reply.moved = await lane.drained()
        return reply

    async def _read(self, session: Session, messages: AsyncIterator[GatewayMessage], fence: int) -> None:
        try:
            async for message in messages:
                if self._lease.fence != fence:
                    return
                for submit in message.submit:
                    self._scheduler.submit(session, submit)
                if message.keep:
                    self._scheduler.keep(unpack_trace_ids(message.keep))
                for request_id in message.cancel:
                    self._scheduler.cancel(session, request_id)
        finally:
            session.outbox.put_nowait(None)

    async def _dismiss(self, session: Session, fence: int) -> None:
        """Sends the gateway, and its requests, to whoever is active next."""
        await self._lease.ended(fence)
        self._scheduler.close(session)
        session.outbox.put_nowait(None)
