import asyncio
import os
import re
import signal
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import generate_latest

from batchyard.config import SchedulerSettings
from batchyard.rpc import RpcServer, connect
from prefix_cache.mirror import PrefixMirror
from protos.scheduling_pb2 import DescribeRequest, DrainRequest, Registration
from protos.scheduling_pb2_grpc import SchedulerStub
from protos.step_pb2_grpc import add_WorkerServicer_to_server
from scheduler.demand_meter import DemandMeter
from scheduler.lease import Lease
from scheduler.main import run
from scheduler.metrics import SchedulerCollector, with_aliases
from scheduler.redis_lease import RedisLease
from tests.scheduler.helpers import Client, held_lease, make_scheduler
from tests.scheduler.simulated_worker import SimulatedTransport, SimulatedWorker
from tests.scheduler.test_core import running, settled
from tests.scheduler.test_service import SimulatedService


async def test_the_process_serves_until_it_is_told_to_stop(tmp_path):
    address = f"unix:{tmp_path}/s.sock"
    settings = SchedulerSettings(scheduler_listen=address, worker_addresses=(f"unix:{tmp_path}/none.sock",))
    process = asyncio.create_task(run(settings))
    async with asyncio.timeout(10), connect(address) as channel:
        state = await SchedulerStub(channel).Describe(DescribeRequest(), wait_for_ready=True)
        assert not state.ready
        os.kill(os.getpid(), signal.SIGTERM)
        await process


async def test_health_says_whether_tokens_can_flow_now(tmp_path):
    settings = SchedulerSettings(scheduler_listen=f"unix:{tmp_path}/s.sock")
    workers = RpcServer(f"unix:{tmp_path}/w.sock")
    service = SimulatedService()
    workers.add(add_WorkerServicer_to_server, service, "batchyard.internal.v1.Worker")
    await workers.start()
    process = asyncio.create_task(run(settings))
    async with asyncio.timeout(10), connect(settings.scheduler_listen) as channel:
        request = health_pb2.HealthCheckRequest()
        watch = health_pb2_grpc.HealthStub(channel).Watch(request, wait_for_ready=True)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        stub = SchedulerStub(channel)
        lease = stub.Register()
        await lease.write(Registration(address=workers.address, worker=service.simulated.worker))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        await stub.Drain(DrainRequest(worker="sim"))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        lease.cancel()
        watch.cancel()
        os.kill(os.getpid(), signal.SIGTERM)
        await process
    await workers.stop(0)


async def test_a_standby_knows_its_workers_and_leaves_them_alone(tmp_path, redis_server):
    active, held = RedisLease(redis_server.url, 0.3, nobody), Lease()
    keeping = asyncio.create_task(active.keep(held))
    settings = SchedulerSettings(
        scheduler_listen=f"unix:{tmp_path}/s.sock", redis=redis_server.url, lease_ttl=0.3
    )
    workers = RpcServer(f"unix:{tmp_path}/w.sock")
    service = SimulatedService()
    workers.add(add_WorkerServicer_to_server, service, "batchyard.internal.v1.Worker")
    await workers.start()
    async with asyncio.timeout(20), connect(settings.scheduler_listen) as channel:
        await held.held()
        process = asyncio.create_task(run(settings))
        request = health_pb2.HealthCheckRequest()
        watch = health_pb2_grpc.HealthStub(channel).Watch(request, wait_for_ready=True)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        stub = SchedulerStub(channel)
        registering = stub.Register()
        await registering.write(Registration(address=workers.address, worker=service.simulated.worker))
        await registering.read()
        state = await stub.Describe(DescribeRequest())
        assert (state.fence, state.ready, len(state.workers)) == (0, False, 1)
        assert service.streams == 0
        with pytest.raises(grpc.aio.AioRpcError, match="it is a standby"):
            await stub.Drain(DrainRequest(worker="sim"))
        keeping.cancel()
        await asyncio.wait([keeping])
        await active.release()
        # From NOT_SERVING to SERVING only now.
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        assert service.streams == 1
        registering.cancel()
        watch.cancel()
        os.kill(os.getpid(), signal.SIGTERM)
        await process
    await active.close()
    await workers.stop(0)


async def nobody():
    return False


async def test_a_worker_that_owes_an_answer_for_long_does_not_count(monkeypatch):
    async with running(SimulatedWorker()) as (scheduler, transports):
        client = Client(scheduler)
        assert scheduler.describe().ready
        transports[0].stream.hold()
        client.submit(1, [1], 5)
        while not scheduler.lanes[0].steps_in_flight:
            await asyncio.sleep(0)
        assert scheduler.describe().ready
        monkeypatch.setattr("scheduler.state.STALLED_SECONDS", 0.0)
        assert not scheduler.describe().ready
        transports[0].stream.go_on()
        await client.all_finished()
        await settled(scheduler)
        assert scheduler.describe().ready


def collector_of(scheduler):
    return SchedulerCollector(scheduler, held_lease(12), DemandMeter(scheduler, 1.0))


async def read_metrics(scheduler, model_name="demo"):
    return generate_latest(with_aliases(collector_of(scheduler), scheduler, model_name)).decode()


async def test_hits_and_evictions_are_counted():
    async with running(SimulatedWorker(num_blocks=16)) as (scheduler, transports):
        client = Client(scheduler)
        for n, prompt in enumerate([[1] * 13, [1] * 13, [2] * 40, [3] * 40]):
            client.submit(n, prompt, 2)
            await client.all_finished()
        transports[0].stream.break_off()  # what was counted stays counted
        text = await read_metrics(scheduler)
    assert "batchyard_scheduler_fence 12.0" in text
    assert "batchyard_prompt_tokens_total 106.0" in text
    assert 'batchyard_prefix_hit_tokens_total{tier="gpu"} 12.0' in text
    assert 'batchyard_evicted_blocks_total{tier="gpu",worker="sim"} 8.0' in text


async def test_the_host_tier_is_counted_apart():
    async with running(SimulatedWorker(num_blocks=24, num_host_blocks=30)) as (scheduler, transports):
        client = Client(scheduler)
        for n, token in enumerate([0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7]):
            client.submit(n, [token] * 40, 2)
            await client.all_finished()
        before = await read_metrics(scheduler)
        transports[0].stream.break_off()
        after = await read_metrics(scheduler)
    hits, lane = scheduler.hits, scheduler.lanes[0]
    counts = lane.tally.caches(lane.batcher)
    assert hits.host > 0
    assert min(counts.saved, counts.loaded, counts.host_evicted) > 0
    for text in (before, after):
        assert f'batchyard_prefix_hit_tokens_total{{tier="host"}} {hits.host}.0' in text
        assert f'batchyard_evicted_blocks_total{{tier="host",worker="sim"}} {counts.host_evicted}.0' in text
        assert f'batchyard_moved_blocks_total{{direction="load",worker="sim"}} {counts.loaded}.0' in text
        assert 'batchyard_move_seconds_total{direction="save",worker="sim"}' in text
    assert 'batchyard_host_blocks{state="cached",worker="sim"} 30.0' in before


async def test_the_documentation_names_metrics_that_are_there():
    page = (Path(__file__).parents[2] / "docs" / "prefix-cache.md").read_text(encoding="utf-8")
    mirror = PrefixMirror("redis://127.0.0.1:1/0")
    text = await read_metrics(make_scheduler(SimulatedTransport(SimulatedWorker()), mirror=mirror))
    await mirror.close()
    named = re.findall(r"`(batchyard_\w+)", page)
    assert len(named) == 9
    for name in named:
        assert f"# TYPE {name.removesuffix('_total')}" in text


async def test_metrics_are_prometheus_text():
    text = await read_metrics(make_scheduler(SimulatedTransport(SimulatedWorker())))
    assert 'batchyard_requests{state="waiting"} 0.0' in text
    assert 'batchyard_steps_total{worker="in-process"} 0.0' in text
