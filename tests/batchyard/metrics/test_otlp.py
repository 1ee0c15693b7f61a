"""Metrics by OTLP, to a real collector over gRPC: the same numbers as on /metrics."""

import asyncio

import grpc.aio
import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as otlp
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as otlp_grpc
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_CUMULATIVE
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from batchyard.config import SchedulerSettings
from batchyard.metrics.pushing import push_metrics


class Receiver(otlp_grpc.MetricsServiceServicer):
    def __init__(self):
        self.requests = []

    async def Export(self, request, context):
        self.requests.append(request)
        return otlp.ExportMetricsServiceResponse()


@pytest.fixture
async def receiver():
    receiver = Receiver()
    server = grpc.aio.server()
    otlp_grpc.add_MetricsServiceServicer_to_server(receiver, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield receiver, f"http://127.0.0.1:{port}"
    await server.stop(0)


def registry():
    registry = CollectorRegistry()
    Counter("steps", "Steps.", ["worker"], registry=registry).labels("w").inc(3)
    Gauge("busy_ratio", "x", registry=registry).set(0.5)
    seconds = Histogram("wait_seconds", "x", ["worker"], buckets=(1, 2), registry=registry)
    for value in (0.5, 1.5, 1.5, 9):
        seconds.labels("w").observe(value)
    Info("build", "neither a count nor a measure", registry=registry)
    return registry


async def test_a_collector_gets_what_prometheus_gets(receiver):
    received, endpoint = receiver
    settings = SchedulerSettings(otlp=endpoint, otlp_metrics_interval=0.05)
    end = push_metrics(settings, "batchyard-scheduler", "one", [registry()])
    async with asyncio.timeout(20):
        while len(received.requests) < 2:
            await asyncio.sleep(0.01)
    await asyncio.to_thread(end)
    (resource,) = received.requests[-1].resource_metrics
    names = {each.key: each.value.string_value for each in resource.resource.attributes}
    assert (names["service.name"], names["service.instance.id"]) == ("batchyard-scheduler", "one")
    metrics = {metric.name: metric for metric in resource.scope_metrics[0].metrics}
    assert metrics.keys() == {"steps", "busy_ratio", "wait_seconds"}
    steps = metrics["steps"].sum
    assert steps.is_monotonic
    assert steps.aggregation_temporality == AGGREGATION_TEMPORALITY_CUMULATIVE
    assert (steps.data_points[0].as_double, steps.data_points[0].attributes[0].value.string_value) == (3, "w")
    assert metrics["busy_ratio"].gauge.data_points[0].as_double == 0.5
    assert (metrics["wait_seconds"].unit, metrics["busy_ratio"].unit) == ("s", "1")
    wait = metrics["wait_seconds"].histogram.data_points[0]
    assert (list(wait.explicit_bounds), list(wait.bucket_counts)) == ([1, 2], [1, 2, 1])
    assert (wait.count, wait.sum) == (4, 12.5)
    assert not wait.HasField("min")
    assert not wait.HasField("max")
    assert 0 < wait.start_time_unix_nano <= wait.time_unix_nano


async def test_without_an_interval_nothing_is_sent(receiver):
    received, endpoint = receiver
    push_metrics(SchedulerSettings(otlp=endpoint), "batchyard-scheduler", "one", [registry()])()
    push_metrics(SchedulerSettings(otlp_metrics_interval=0.01), "batchyard-scheduler", "one", [registry()])()
    assert not received.requests


def test_a_collector_that_fails_ends_nothing():
    class Failing:
        def collect(self):
            raise RuntimeError("changed during iteration")

    settings = SchedulerSettings(otlp="http://127.0.0.1:1", otlp_metrics_interval=60)
    push_metrics(settings, "batchyard-scheduler", "one", [Failing()])()
