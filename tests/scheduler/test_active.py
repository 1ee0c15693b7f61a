"""A scheduler that becomes active, a standby, and active again: what its gateways and its worker see."""

import asyncio

import grpc
import pytest

from batchyard.errors import WorkerTaken
from batchyard.fence import fence_in, metadata
from batchyard.rpc import RpcServer, connect
from protos.packing import unpack_i32
from protos.scheduling_pb2 import DescribeRequest, GatewayMessage
from protos.scheduling_pb2_grpc import SchedulerStub, add_SchedulerServicer_to_server
from protos.step_pb2 import WorkerDescription
from protos.step_pb2_grpc import WorkerServicer, add_WorkerServicer_to_server
from scheduler.active import run_while_active
from scheduler.lease import Lease
from scheduler.registry import Registry
from scheduler.service import SchedulerService
from scheduler.transport import GrpcTransport
from tests.scheduler.helpers import make_scheduler, submit
from tests.scheduler.simulated_worker import SimulatedTransport, SimulatedWorker, answer


@pytest.fixture(autouse=True)
async def in_time():
    async with asyncio.timeout(10):
        yield


async def tokens_of(call):
    """Of the one request on a stream, until it has ended."""
    tokens, finished = [], []
    while not finished:
        message = await call.read()
        tokens += unpack_i32(message.tokens).tolist()
        finished += message.finished
    return tokens


async def test_gateways_are_served_while_the_lease_is_held(tmp_path):
    lease = Lease()
    transport = SimulatedTransport(SimulatedWorker())
    scheduler = make_scheduler(transport)
    server = RpcServer(f"unix:{tmp_path}/s.sock")
    service = SchedulerService(scheduler, Registry(scheduler.fleet, {}.__getitem__), lease)
    server.add(add_SchedulerServicer_to_server, service, "batchyard.internal.v1.Scheduler")
    await server.start()
    running = asyncio.create_task(run_while_active(scheduler, lease))
    async with connect(server.address) as channel:
        stub = SchedulerStub(channel)
        early = stub.Connect()
        description = await stub.Describe(DescribeRequest(), wait_for_ready=True)
        assert (description.fence, description.ready) == (0, False)
        for fence in (5, 7):
            call = stub.Connect() if fence == 7 else early
            opened = asyncio.ensure_future(call.initial_metadata())
            assert not (await asyncio.wait([opened], timeout=0.02))[0]
            lease.hold(fence)
            assert fence_in(await opened) == fence
            assert (await stub.Describe(DescribeRequest())).fence == fence
            await call.write(GatewayMessage(submit=[submit(1, [fence], 20)]))
            assert await tokens_of(call) == answer([fence], 20)
            await call.write(GatewayMessage(submit=[submit(2, [fence], 250)]))
            await call.read()
            lease.drop("so says the test")
            while await call.read() is not grpc.aio.EOF:
                pass
            while scheduler.lanes[0].connected:
                await asyncio.sleep(0)
            state = scheduler.describe()
            assert (state.ready, state.waiting, state.running) == (False, 0, 0)
            # What is still said over a stream that is over is not heard.
            assert [len(session.requests) for session in scheduler.sessions] == [0]
    await server.stop(0)
    running.cancel()
    await asyncio.wait([running])


class OutrankedService(WorkerServicer):
    """A worker that another scheduler has."""

    async def Describe(self, request, context):
        return WorkerDescription(fence=9)

    async def Steps(self, request_iterator, context):
        if fence_in(context.invocation_metadata()) < 9:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "outranked")
        await context.send_initial_metadata(metadata(9))
        await context.abort(grpc.StatusCode.ABORTED, "taken over")


async def test_a_worker_tells_who_outranks_us(tmp_path):
    server = RpcServer(f"unix:{tmp_path}/w.sock")
    server.add(add_WorkerServicer_to_server, OutrankedService(), "batchyard.internal.v1.Worker")
    await server.start()
    lease = Lease()
    lease.hold(8)
    transport = GrpcTransport(server.address, lease)
    with pytest.raises(WorkerTaken):
        await transport.open()
    assert await lease.challenged() == 9
    lease.hold(10)
    stream = await transport.open()
    with pytest.raises(WorkerTaken):
        await stream.receive()
    await transport.close()
    await server.stop(0)
