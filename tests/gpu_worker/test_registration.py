"""A worker that registers with schedulers, over a real socket."""

import asyncio
from contextlib import asynccontextmanager

import grpc
import pytest

from batchyard.config import WorkerSettings
from batchyard.rpc import RpcServer
from gpu_worker.registration import Registrar, advertised, registrar_for
from protos.scheduling_pb2 import Registered, Registration
from protos.scheduling_pb2_grpc import SchedulerServicer, add_SchedulerServicer_to_server
from protos.step_pb2 import WorkerDescription

REGISTRATION = Registration(address=":1", worker=WorkerDescription(worker_id="w", epoch=7))
DEADLINE = 10


class Scheduler(SchedulerServicer):
    """Notes what it is told; what it answers can be changed."""

    def __init__(self):
        self.told = asyncio.Queue()
        self.streams = 0
        self.refuses = self.is_silent = False
        self.most = 1000  # messages on a stream

    async def Register(self, request_iterator, context):
        self.streams += 1
        told = 0
        async for message in request_iterator:
            if self.refuses:
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "another model")
            told += 1
            self.told.put_nowait(message)
            if told > self.most:
                return
            if told == 1 or not self.is_silent:
                yield Registered(lease_ms=60)

    async def next(self):
        async with asyncio.timeout(DEADLINE):
            return await self.told.get()


@asynccontextmanager
async def serving(address, scheduler):
    server = RpcServer(address)
    server.add(add_SchedulerServicer_to_server, scheduler, "batchyard.internal.v1.Scheduler")
    await server.start()
    try:
        yield
    finally:
        await server.stop(0)


@pytest.fixture
async def registering():
    tasks = []

    def register(*addresses):
        tasks.append(asyncio.create_task(Registrar(addresses, REGISTRATION).run()))

    yield register
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_says_all_once_and_then_beats(tmp_path, registering):
    scheduler = Scheduler()
    async with serving(f"unix:{tmp_path}/s", scheduler):
        registering(f"unix:{tmp_path}/s")
        assert await scheduler.next() == REGISTRATION
        for _ in range(5):
            assert await scheduler.next() == Registration()
        assert scheduler.streams == 1


async def test_registers_with_every_scheduler_also_with_one_that_comes_back(tmp_path, registering):
    first, second = Scheduler(), Scheduler()
    registering(f"unix:{tmp_path}/a", f"unix:{tmp_path}/b")
    async with serving(f"unix:{tmp_path}/b", second):
        assert await second.next() == REGISTRATION
        async with serving(f"unix:{tmp_path}/a", first):
            assert await first.next() == REGISTRATION
        again = Scheduler()
        async with serving(f"unix:{tmp_path}/a", again):
            assert await again.next() == REGISTRATION
    assert second.streams == 1


@pytest.mark.parametrize("fault", ["ends", "silent", "refuses"])
async def test_registers_again_whatever_happens(tmp_path, registering, monkeypatch, fault):
    for pause in ("_RETRY_S", "_REFUSED_S"):
        monkeypatch.setattr(f"gpu_worker.registration.{pause}", 0.01)
    scheduler = Scheduler()
    scheduler.is_silent = fault == "silent"
    scheduler.refuses = fault == "refuses"
    scheduler.most = 3 if fault == "ends" else 1000
    async with serving(f"unix:{tmp_path}/s", scheduler), asyncio.timeout(DEADLINE):
        registering(f"unix:{tmp_path}/s")
        while scheduler.streams < 3:
            await asyncio.sleep(0.01)
        scheduler.refuses = False
        while await scheduler.next() != REGISTRATION:
            pass


@pytest.mark.parametrize(
    ("serving_at", "told"),
    [
        ("127.0.0.1:50052", "127.0.0.1:50052"),
        ("0.0.0.0:50052", ":50052"),
        ("[::]:50052", ":50052"),
        ("unix:/run/w.sock", "unix:/run/w.sock"),
    ],
)
def test_where_it_is_reached(serving_at, told):
    assert advertised(serving_at) == told
    worker = WorkerDescription()
    assert registrar_for(WorkerSettings(), serving_at, worker).registration.address == told
    settings = WorkerSettings(advertise_address="gpu-7:1")
    assert registrar_for(settings, serving_at, worker).registration.address == "gpu-7:1"
