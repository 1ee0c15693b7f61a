"""The scheduler process's gRPC service and its gRPC way to a worker, over real sockets."""

import asyncio

import pytest

from batchyard.errors import WorkerLost
from batchyard.fence import metadata
from batchyard.rpc import RpcServer, connect
from protos.packing import unpack_i32
from protos.scheduling_pb2 import DescribeRequest, GatewayMessage
from protos.scheduling_pb2_grpc import SchedulerStub, add_SchedulerServicer_to_server
from protos.step_pb2_grpc import WorkerServicer, add_WorkerServicer_to_server
from scheduler.lease import Lease
from scheduler.registry import Registry
from scheduler.service import SchedulerService
from scheduler.transport import GrpcTransport
from tests.scheduler.helpers import held_lease, make_scheduler, submit
from tests.scheduler.simulated_worker import SimulatedWorker, answer


class SimulatedService(WorkerServicer):
    def __init__(self):
        self.simulated = SimulatedWorker()
        self.streams = 0

    async def Describe(self, request, context):
        return self.simulated.describe()

    async def Steps(self, request_iterator, context):
        self.simulated.reset()
        self.streams += 1
        await context.send_initial_metadata(metadata(7))
        async for batch in request_iterator:
            self.simulated.receive(batch)
            yield self.simulated.execute(batch)


@pytest.fixture
async def worker(tmp_path):
    server = RpcServer(f"unix:{tmp_path}/worker.sock")
    service = SimulatedService()
    server.add(add_WorkerServicer_to_server, service, "batchyard.internal.v1.Worker")
    await server.start()
    yield server.address, service
    await server.stop(0)


@pytest.fixture
async def stack(tmp_path, worker):
    """A running scheduler and a stub to it."""
    lease = held_lease()
    scheduler = make_scheduler(GrpcTransport(worker[0], lease))
    server = RpcServer(f"unix:{tmp_path}/scheduler.sock")
    registry = Registry(scheduler.fleet, lambda address: GrpcTransport(address, lease))
    service = SchedulerService(scheduler, registry, lease)
    server.add(add_SchedulerServicer_to_server, service, "batchyard.internal.v1.Scheduler")
    await server.start()
    steps = asyncio.create_task(scheduler.run())
    async with connect(server.address) as channel:
        stub = SchedulerStub(channel)
        async with asyncio.timeout(5):
            while not (await stub.Describe(DescribeRequest())).ready:
                await asyncio.sleep(0)
        yield scheduler, stub
    await server.stop(0)
    steps.cancel()
    await asyncio.wait([steps])


async def test_a_request_over_both_hops(stack):
    scheduler, stub = stack
    call = stub.Connect()
    await call.write(GatewayMessage(submit=[submit(7, [1, 2, 3], 20)]))
    tokens, finished = [], []
    async with asyncio.timeout(5):
        while not finished:
            message = await call.read()
            tokens += unpack_i32(message.tokens).tolist()
            finished += message.finished
    assert tokens == answer([1, 2, 3], 20)
    call.cancel()
    state = scheduler.describe()
    assert state.max_model_len == 256
    assert state.vocab_size == 50


async def test_the_state_has_the_last_step_of_a_worker_and_the_tenants_that_are_asked_for(stack):
    _, stub = stack
    assert not (await stub.Describe(DescribeRequest())).workers[0].HasField("last_step")
    call = stub.Connect()
    asked = [submit(n, [n, 1, 2], 250, tenant=name) for n, name in enumerate("aabbbc", start=1)]
    await call.write(GatewayMessage(submit=asked))
    await call.read()
    state = await stub.Describe(DescribeRequest(max_tenants=2))
    assert [(tenant.name, tenant.weight) for tenant in state.tenants] == [("b", 1), ("a", 1)]
    assert [tenant.waiting + tenant.running for tenant in state.tenants] == [3, 2]
    assert state.num_tenants == 3
    step = state.workers[0].last_step
    assert 0 < step.rows <= step.tokens
    assert state.workers[0].generated_tokens > 0
    assert list((await stub.Describe(DescribeRequest())).tenants) == []
    call.cancel()


async def test_a_gateway_that_hangs_up_leaves_nothing_behind(stack):
    scheduler, stub = stack
    call = stub.Connect()
    await call.write(GatewayMessage(submit=[submit(n, [n], 250) for n in range(6)], cancel=[3]))
    await call.read()
    call.cancel()
    async with asyncio.timeout(5):
        while (state := scheduler.describe()).running or state.waiting or state.workers[0].rows:
            await asyncio.sleep(0)
    assert state.workers[0].held_blocks == 0


async def test_a_gateway_that_stops_sending_is_answered_with_the_end(stack):
    _, stub = stack
    call = stub.Connect()
    await call.done_writing()
    async with asyncio.timeout(5):
        assert not [message async for message in call]


async def test_a_worker_that_cannot_be_reached_is_waited_for():
    transport = GrpcTransport("127.0.0.1:1", Lease())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await transport.open()
    await transport.close()


async def test_a_stream_the_worker_ends_is_lost(worker):
    address, _ = worker
    transport = GrpcTransport(address, Lease())
    assert (await transport.describe()).worker_id == "sim"
    stream = await transport.open()
    stream.close()
    with pytest.raises(WorkerLost):
        await stream.receive()
    await transport.close()
