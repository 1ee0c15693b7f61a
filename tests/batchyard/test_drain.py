"""`batchyard drain` against schedulers of which one is active."""

import asyncio
import threading
from contextlib import contextmanager

import grpc
import pytest

from batchyard.drain import main
from batchyard.errors import ConfigError, UnknownWorker
from batchyard.rpc import RpcServer
from protos.scheduling_pb2 import DrainReply
from protos.scheduling_pb2_grpc import SchedulerServicer, add_SchedulerServicer_to_server


class Scheduler(SchedulerServicer):
    """Has `workers`."""

    def __init__(self, *workers):
        self.workers = workers
        self.asked = []

    async def Drain(self, request, context):
        self.asked.append((request.worker, request.undo))
        if request.worker not in self.workers:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"{request.worker!r} is no worker")
        return DrainReply(worker_id=request.worker, address="w:1", moved=3)


@contextmanager
def serving(address, scheduler):
    """In a thread of its own: the command has its own event loop."""
    ready = threading.Event()
    stop = []

    async def serve():
        server = RpcServer(address)
        server.add(add_SchedulerServicer_to_server, scheduler, "batchyard.internal.v1.Scheduler")
        await server.start()
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        stop.append(lambda: loop.call_soon_threadsafe(ended.set))
        ready.set()
        await ended.wait()
        await server.stop(0)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(10)
    try:
        yield
    finally:
        stop[0]()
        thread.join()


@pytest.fixture
def addresses(tmp_path):
    return [f"unix:{tmp_path}/{name}.sock" for name in ("standby", "active", "away")]


def test_the_active_scheduler_is_found_and_asked(addresses, capsys):
    standby, active = Scheduler(), Scheduler("w")
    with serving(addresses[0], standby), serving(addresses[1], active):
        flag = ["--scheduler-address", ",".join([addresses[2], *addresses[:2]])]
        main(["w", *flag])
        assert "w is drained" in (told := capsys.readouterr().out)
        assert "3 requests" in told
        main(["w", "--undo", *flag])
        assert capsys.readouterr().out == "w at w:1 is used again\n"
        with pytest.raises(UnknownWorker, match="'v' is no worker"):
            main(["v", *flag])
    assert active.asked == [("w", False), ("w", True), ("v", False)]


def test_without_a_scheduler_the_address_is_named(addresses, monkeypatch):
    monkeypatch.setenv("BATCHYARD_SCHEDULER_ADDRESS", addresses[2])
    with pytest.raises(ConfigError, match=f"the scheduler at {addresses[2]}: "):
        main(["w"])
