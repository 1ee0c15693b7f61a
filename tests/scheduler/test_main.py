import asyncio
import os
import signal
import urllib.request

from batchyard.config import SchedulerSettings
from batchyard.rpc import connect
from protos.scheduling_pb2 import DescribeRequest
from protos.scheduling_pb2_grpc import SchedulerStub
from scheduler.main import run
from scheduler.metrics import serve_metrics
from tests.scheduler.helpers import make_scheduler
from tests.scheduler.simulated_worker import SimulatedTransport, SimulatedWorker


async def test_the_process_serves_until_it_is_told_to_stop(tmp_path):
    address = f"unix:{tmp_path}/s.sock"
    settings = SchedulerSettings(scheduler_listen=address, worker_addresses=(f"unix:{tmp_path}/none.sock",))
    process = asyncio.create_task(run(settings))
    async with asyncio.timeout(10), connect(address) as channel:
        state = await SchedulerStub(channel).Describe(DescribeRequest(), wait_for_ready=True)
        assert not state.ready
        os.kill(os.getpid(), signal.SIGTERM)
        await process


async def test_metrics_are_prometheus_text():
    server = serve_metrics(make_scheduler(SimulatedTransport(SimulatedWorker())), 0)
    try:
        url = f"http://127.0.0.1:{server.server_port}/metrics"
        text = (await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=5).read())).decode()
    finally:
        server.shutdown()
        server.server_close()
    assert 'batchyard_requests{state="waiting"} 0.0' in text
    assert 'batchyard_steps_total{worker="in-process"} 0.0' in text
