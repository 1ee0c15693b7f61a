"""Workers that register themselves: by call, and over a real socket."""

import asyncio
from contextlib import asynccontextmanager

import grpc
import pytest

from batchyard.errors import WorkerRefused
from batchyard.rpc import RpcServer, connect
from protos.scheduling_pb2 import DescribeRequest, DrainRequest, Registration
from protos.scheduling_pb2_grpc import SchedulerStub, add_SchedulerServicer_to_server
from protos.step_pb2 import WorkerDescription
from scheduler.registry import Registry, address_from
from scheduler.service import SchedulerService
from tests.scheduler.helpers import Client, held_lease, make_scheduler
from tests.scheduler.simulated_worker import SimulatedTransport, SimulatedWorker, answer
from tests.scheduler.test_fleet import all_exact, in_the_middle, until


class Place:
    """A scheduler with a registry, and the workers that there are, by address."""

    def __init__(self, lease_s=60.0):
        self.scheduler = make_scheduler()
        self.transports = {}
        self.registry = Registry(self.scheduler.fleet, self.transports.__getitem__, lease_s)

    def worker(self, address, **description):
        worker = SimulatedWorker(worker_id=address.partition(":")[0], **description)
        self.transports[address] = SimulatedTransport(worker, address)
        return worker

    def register(self, address, **description):
        self.registry.register(address, self.worker(address, **description).worker)

    @property
    def names(self):
        return [lane.name for lane in self.scheduler.lanes]

    async def until_connected(self, *addresses):
        await until(lambda: {lane.address for lane in self.scheduler.lanes if lane.connected} >= {*addresses})


@asynccontextmanager
async def place(**options):
    here = Place(**options)
    task = asyncio.create_task(here.scheduler.run())
    try:
        yield here
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_a_worker_that_registers_gets_work_at_once():
    async with place() as here:
        assert not here.scheduler.describe().ready
        here.register("a:1")
        await here.until_connected("a:1")
        client = await in_the_middle(here.scheduler)
        here.register("b:1")
        await until(lambda: here.transports["b:1"].simulated.rows, seconds=1)
        await all_exact(client)


async def test_a_worker_whose_beats_stop_is_removed_once_nothing_runs_there(monkeypatch):
    monkeypatch.setattr("scheduler.registry._LOOK_AGAIN_S", 0.01)
    async with place(lease_s=0.05) as here:
        here.register("a:1")
        await here.until_connected("a:1")
        client = Client(here.scheduler)
        client.submit(1, [1], 200)
        await client.until(lambda: client.tokens[1])
        transport = here.transports["a:1"]
        transport.stream.hold()
        with pytest.raises(TimeoutError):
            await until(lambda: not here.names, seconds=0.2)
        transport.stream.go_on()
        await client.all_finished()
        assert client.tokens[1] == answer([1], 200)
        await until(lambda: transport.closed)
        assert not here.names
        assert not here.registry.renew("a:1")  # too late: it must register again
        here.register("a:1")
        await here.until_connected("a:1")


async def test_beats_keep_a_worker():
    async with place(lease_s=0.1) as here:
        here.register("a:1")
        loop = asyncio.get_running_loop()
        start = loop.time()
        while loop.time() < start + 0.3:
            assert here.registry.renew("a:1")
            await asyncio.sleep(0.01)  # a beat
        assert here.names == ["a"]


async def test_a_worker_that_is_known_by_its_address_already_stays_without_a_lease():
    async with place(lease_s=0.02) as here:
        worker = here.worker("a:1")
        here.scheduler.fleet.add(here.transports["a:1"])
        here.registry.register("a:1", worker.worker)
        await until(lambda: not here.registry._leases)
        assert here.names == ["a"]


async def test_a_worker_that_is_connected_by_another_address_is_not_used_twice():
    async with place() as here:
        worker = here.worker("a:1")
        here.scheduler.fleet.add(here.transports["a:1"])
        await here.until_connected("a:1")
        here.registry.register("10.0.0.1:1", worker.worker)
        assert [lane.address for lane in here.scheduler.lanes] == ["a:1"]


async def test_a_process_that_follows_another_at_its_address_is_connected_without_delay(monkeypatch):
    monkeypatch.setattr("scheduler.retries._WAITS", (3600.0,))
    async with place() as here:
        here.register("a:1")
        await here.until_connected("a:1")
        transport = here.transports["a:1"]
        transport.stream.break_off()
        await until(lambda: not here.scheduler.lanes[0].connected)
        transport.simulated.worker.epoch += 1000
        here.registry.register("a:1", transport.simulated.worker)
        await here.until_connected("a:1")
        assert here.names == ["a"]


async def test_a_worker_that_flaps_is_left_alone_however_often_it_registers(monkeypatch):
    monkeypatch.setattr("scheduler.breaker.MOST", 1)
    monkeypatch.setattr("scheduler.breaker.SHORTEST", 0.2)
    async with place() as here:
        here.register("a:1")
        await here.until_connected("a:1")
        (lane,) = here.scheduler.lanes
        here.transports["a:1"].stream.break_off()
        await until(lambda: not lane.connected)
        lost_at = asyncio.get_running_loop().time()
        here.registry.register("a:1", here.transports["a:1"].simulated.worker)
        await here.until_connected("a:1")
        assert asyncio.get_running_loop().time() - lost_at > 0.19


async def test_a_worker_that_moved_replaces_itself():
    async with place() as here:
        here.register("a:1")
        await here.until_connected("a:1")
        here.transports["a:1"].lost = True
        here.transports["a:1"].stream.break_off()
        await until(lambda: not here.scheduler.lanes[0].connected)
        here.register("a:2")
        await here.until_connected("a:2")
        assert [lane.address for lane in here.scheduler.lanes] == ["a:2"]


async def test_a_worker_of_another_model_is_refused():
    async with place() as here:
        here.register("a:1", model="m")  # connected or not yet
        with pytest.raises(WorkerRefused, match="b has model other, and a has m"):
            here.register("b:1", model="other")
        here.register("c:1", model="m")
        assert here.names == ["a:1", "c:1"]


@pytest.mark.parametrize(
    ("advertised", "peer", "address"),
    [
        ("10.0.0.7:50052", "ipv4:10.0.0.9:41234", "10.0.0.7:50052"),
        ("unix:/run/w.sock", "unix:", "unix:/run/w.sock"),
        (":50052", "ipv4:10.0.0.9:41234", "10.0.0.9:50052"),
        (":50052", "ipv6:%5B::1%5D:41234", "[::1]:50052"),
    ],
)
def test_where_a_worker_is_reached(advertised, peer, address):
    assert address_from(advertised, peer) == address


@pytest.mark.parametrize("peer", ["unix:", "ipv4:"])
def test_a_worker_without_a_host_is_refused(peer):
    with pytest.raises(WorkerRefused, match="must say its host"):
        address_from(":50052", peer)


@pytest.fixture
async def served(tmp_path):
    async with place(lease_s=0.3) as here:
        server = RpcServer(f"unix:{tmp_path}/s.sock")
        service = SchedulerService(here.scheduler, here.registry, held_lease())
        server.add(add_SchedulerServicer_to_server, service, "batchyard.internal.v1.Scheduler")
        await server.start()
        async with connect(server.address) as channel, asyncio.timeout(10):
            yield here, SchedulerStub(channel)
        await server.stop(0)


async def test_registering_over_the_wire(served):
    here, stub = served
    worker = here.worker("a:1")
    call = stub.Register()
    await call.write(Registration(address="a:1", worker=worker.worker))
    assert (await call.read()).lease_ms == 300
    await here.until_connected("a:1")
    await call.write(Registration())
    assert (await call.read()).lease_ms == 300
    await until(lambda: not here.names)  # no more beats
    await call.write(Registration())
    assert await call.read() is grpc.aio.EOF
    assert await call.code() == grpc.StatusCode.OK


async def test_a_worker_that_does_not_fit_is_told_why(served):
    _, stub = served
    call = stub.Register()
    await call.write(Registration(address=":1", worker=WorkerDescription(worker_id="a")))
    with pytest.raises(grpc.aio.AioRpcError, match="must say its host") as refused:
        await call.read()
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION


async def test_draining_over_the_wire(served):
    here, stub = served
    for address in ("a:1", "b:1"):
        here.worker(address)
        here.scheduler.fleet.add(here.transports[address])
    await here.until_connected("a:1", "b:1")
    client = await in_the_middle(here.scheduler)
    reply = await stub.Drain(DrainRequest(worker="a"))
    assert (reply.worker_id, reply.address) == ("a", "a:1")
    assert reply.moved > 0
    await all_exact(client)
    state = await stub.Describe(DescribeRequest())
    assert [(worker.worker_id, worker.draining) for worker in state.workers] == [("a", True), ("b", False)]
    await stub.Drain(DrainRequest(worker="a", undo=True))
    await here.until_connected("a:1")
    with pytest.raises(grpc.aio.AioRpcError, match="'c' is no worker") as unknown:
        await stub.Drain(DrainRequest(worker="c"))
    assert unknown.value.code() == grpc.StatusCode.NOT_FOUND
