"""Metrics of requests: who waits, who was refused, who was paused, and how long it takes."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from protos.scheduling_pb2 import RefusalReason
from scheduler.core import Scheduler
from scheduler.preemption import Cause


def queue_metrics(scheduler: Scheduler) -> Iterator[Metric]:
    """One sample per series, now."""
    state = scheduler.describe()
    requests = GaugeMetricFamily("batchyard_requests", "requests by state", labels=["state"])
    requests.add_metric(["waiting"], state.waiting)
    requests.add_metric(["running"], state.running)
    tokens = GaugeMetricFamily("batchyard_queue_tokens", "of requests that have not begun to run")
    tokens.add_metric([], scheduler.door.size.tokens)
    suspects = GaugeMetricFamily("batchyard_suspects", "requests with which workers were lost")
    suspects.add_metric([], len(scheduler.suspects))
    yield from (requests, tokens, suspects)
    yield from _counts(scheduler)
    yield from _times(scheduler)


def _counts(scheduler: Scheduler) -> Iterator[Metric]:
    preemptions = CounterMetricFamily(
        "batchyard_preemptions", "requests that lost their row to others for a while", labels=["cause"]
    )
    for cause in Cause:
        preemptions.add_metric([cause.value], scheduler.preempted_for[cause])
    refused = CounterMetricFamily(
        "batchyard_refused_requests", "requests that were not let into the queue", labels=["reason"]
    )
    for reason in RefusalReason.keys():  # noqa: SIM118 - a wrapper of protobuf's, no mapping
        if not reason.endswith("UNSPECIFIED"):
            label = reason.removeprefix("REFUSAL_REASON_").lower()
            refused.add_metric([label], scheduler.door.refused.get(reason, 0))
    yield from (preemptions, refused)
    for name, text, count in (
        ("shed_requests", "requests that left the queue for a higher priority", scheduler.door.shed),
        ("timeouts", "requests that ended at their deadline", scheduler.timeouts),
        ("failed_requests", "requests that killed workers", scheduler.suspects.failed),
    ):
        family = CounterMetricFamily(f"batchyard_{name}", text)
        family.add_metric([], count)
        yield family


def _times(scheduler: Scheduler) -> Iterator[Metric]:
    times = scheduler.times
    for name, text, spent in (
        ("queue", "from a request's arrival to its first row", times.queue),
        ("prefill", "from a request's first row to its first token", times.prefill),
        ("decode", "from a request's first token to its last", times.decode),
    ):
        family = HistogramMetricFamily(f"batchyard_{name}_time_seconds", text)
        spent.report(family)
        yield family
