"""What Prometheus reads of the scheduler's books."""

import asyncio
import re

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from batchyard.metrics.bounded_names import MOST_TENANTS, OTHERS
from scheduler.demand_meter import DemandMeter
from scheduler.metrics import ALIASES, SchedulerCollector, with_aliases
from scheduler.shedding import QueueLimits
from scheduler.tenant_metrics import TenantMetrics
from tests.scheduler.helpers import Client, held_lease, make_scheduler
from tests.scheduler.simulated_worker import SimulatedWorker
from tests.scheduler.test_core import running


def read(scheduler, fence=12, model_name="demo"):
    """Value by name and labels, histograms' buckets left out."""
    collector = SchedulerCollector(scheduler, held_lease(fence), DemandMeter(scheduler, 1.0))
    text = generate_latest(with_aliases(collector, scheduler, model_name)).decode()
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "le" not in sample.labels
    }


async def test_steps_and_requests_are_counted():
    async with running(SimulatedWorker()) as (scheduler, _):
        client = Client(scheduler)
        for number in range(3):
            client.submit(number, [number + 1] * 20, 8)
        await client.all_finished()
        told = read(scheduler)
    assert told["batchyard_queue_time_seconds_count", ""] == 3
    assert told["batchyard_prefill_time_seconds_count", ""] == 3
    assert told["batchyard_decode_time_seconds_count", ""] == 3
    assert told["batchyard_generated_tokens_total", "sim"] == 24
    assert told["batchyard_computed_tokens_total", "prompt,sim"] == 60
    assert told["batchyard_computed_tokens_total", "answer,sim"] >= 21
    assert told["batchyard_step_rows_count", "sim"] == told["batchyard_steps_total", "sim"]
    assert told["batchyard_kv_usage_ratio", "sim"] == 0
    assert told["batchyard_worker_info", "in-process,none,sim"] == 1


async def test_vllms_names_say_the_same():
    async with running(SimulatedWorker()) as (scheduler, _):
        client = Client(scheduler)
        for number in range(3):
            client.submit(number, [1] * 20, 8)
            await client.all_finished()
        told = read(scheduler)
        unnamed = read(scheduler, model_name=None)
    for alias in ALIASES:
        assert any(re.fullmatch(f"{alias.name}(_total|_count)?", name) for name, _ in told), alias
    assert told["vllm:prefix_cache_queries_total", "demo"] == 60
    hits = told["batchyard_prefix_hit_tokens_total", "gpu"]
    assert told["vllm:prefix_cache_hits_total", "demo"] == hits > 0
    assert told["vllm:kv_cache_usage_perc", "sim,demo"] == told["batchyard_kv_usage_ratio", "sim"]
    steps = told["batchyard_step_tokens_count", "sim"]
    assert told["vllm:iteration_tokens_total_count", "sim,demo"] == steps
    model = scheduler.lanes[0].worker.model
    assert ("vllm:num_preemptions_total", model) in unnamed


def test_a_standby_wants_no_workers():
    scheduler = make_scheduler()
    assert ("batchyard_workers_wanted", "") in read(scheduler)
    assert ("batchyard_workers_wanted", "") not in read(scheduler, fence=0)


async def test_refusals_by_reason():
    limits = QueueLimits(requests=2, tokens=1000)
    async with running(SimulatedWorker(max_rows=1), limits=limits) as (scheduler, transports):
        transports[0].stream.hold()
        client = Client(scheduler)
        client.submit(0, [], 1)
        for number in range(1, 6):
            client.submit(number, [number], 5)
        await client.until(lambda: len(client.refused) > 2)
        told = read(scheduler)
        transports[0].stream.go_on()
        await client.all_finished()
    assert told["batchyard_refused_requests_total", "invalid"] == 1
    assert told["batchyard_refused_requests_total", "over_share"] == len(client.refused) - 1
    assert told["batchyard_refused_requests_total", "unavailable"] == 0


async def test_tenants_who_wait():
    clock_now = 1e9
    async with running(SimulatedWorker(max_rows=2)) as (scheduler, transports):
        transports[0].stream.hold()
        client = Client(scheduler)
        for number, tenant in enumerate(["a", "a", "a", "b"]):
            client.submit(number, [number + 1] * 7, 5, tenant=tenant)
        await asyncio.sleep(0)
        metrics = TenantMetrics(scheduler, lambda: clock_now)
        told = {
            (sample.name.removeprefix("batchyard_tenant_"), *sample.labels.values()): sample.value
            for metric in metrics.collect()
            for sample in metric.samples
        }
        transports[0].stream.go_on()
        await client.all_finished()
        after = {metric.name: metric.samples for metric in metrics.collect()}
    assert told["requests", "a", "running"] + told["requests", "b", "running"] == 2
    assert told["requests", "a", "waiting"] + told["requests", "b", "waiting"] == 2
    assert sum(value for (name, *_), value in told.items() if name == "queue_tokens") == 14
    assert told["oldest_wait_seconds", "a"] == pytest.approx(clock_now, rel=0.5)
    assert not after["batchyard_tenant_oldest_wait_seconds"]


async def test_a_thousand_tenants_make_no_thousand_series():
    async with running(SimulatedWorker(max_rows=1)) as (scheduler, transports):
        transports[0].stream.hold()
        client = Client(scheduler)
        for number in range(1000):
            client.submit(number, [1], 1, tenant=f"tenant-{number}")
        told = read(scheduler)
        transports[0].stream.go_on()
        await client.all_finished()
    tokens = {
        labels: value for (name, labels), value in told.items() if name == "batchyard_tenant_queue_tokens"
    }
    assert len(tokens) == MOST_TENANTS + 1
    assert tokens[OTHERS] >= 1000 - MOST_TENANTS - 1


async def test_moves_are_timed_from_their_order_to_their_end():
    async with running(SimulatedWorker(num_blocks=24, num_host_blocks=30)) as (scheduler, _):
        client = Client(scheduler)
        for number, token in enumerate([0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7]):
            client.submit(number, [token] * 40, 2)
            await client.all_finished()
        told = read(scheduler)
    for direction in ("save", "load"):
        assert told["batchyard_move_latency_seconds_count", f"{direction},sim"] > 0
        assert told["batchyard_move_latency_seconds_sum", f"{direction},sim"] >= 0
