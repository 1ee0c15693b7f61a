"""The scheduler's /metrics: read from its state when Prometheus asks, so that a step pays nothing."""

from collections.abc import Iterator
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from scheduler.core import Scheduler
from scheduler.lease import Lease
from scheduler.preemption import Cause
from scheduler.prefix_metrics import prefix_metrics


class SchedulerCollector(Collector):
    """Reads the scheduler's books."""

    def __init__(self, scheduler: Scheduler, lease: Lease) -> None:
        self._scheduler = scheduler
        self._lease = lease

    def collect(self) -> Iterator[Metric]:
        """One sample per series, now."""
        state = self._scheduler.describe()
        fence = GaugeMetricFamily("batchyard_scheduler_fence", "of the active scheduler; 0 on a standby")
        fence.add_metric([], self._lease.fence)
        yield fence
        requests = GaugeMetricFamily("batchyard_requests", "requests by state", labels=["state"])
        requests.add_metric(["waiting"], state.waiting)
        requests.add_metric(["running"], state.running)
        yield requests
        yield from self._queue()
        blocks = GaugeMetricFamily("batchyard_kv_blocks", "KV blocks by state", labels=["worker", "state"])
        rows = GaugeMetricFamily("batchyard_rows", "rows in use", labels=["worker"])
        connected = GaugeMetricFamily("batchyard_worker_connected", "1 while connected", labels=["worker"])
        draining = GaugeMetricFamily(
            "batchyard_worker_draining", "1 from being drained until it is restarted", labels=["worker"]
        )
        for worker in state.workers:
            name = worker.worker_id or worker.address
            blocks.add_metric([name, "free"], worker.free_blocks)
            blocks.add_metric([name, "held"], worker.held_blocks)
            blocks.add_metric([name, "cached"], worker.cached_blocks)
            rows.add_metric([name], worker.rows)
            connected.add_metric([name], worker.connected)
            draining.add_metric([name], worker.draining)
        yield from (blocks, rows, connected, draining)
        yield from self._steps()
        yield from self._sick()
        yield from prefix_metrics(self._scheduler)

    def _queue(self) -> Iterator[Metric]:
        scheduler = self._scheduler
        preemptions = CounterMetricFamily(
            "batchyard_preemptions", "requests that lost their row to others for a while", labels=["cause"]
        )
        for cause in Cause:
            preemptions.add_metric([cause.value], scheduler.preempted_for[cause])
        refused = CounterMetricFamily(
            "batchyard_refused_requests", "requests that were not let into the queue", labels=["reason"]
        )
        for reason, count in scheduler.door.refused.items():
            refused.add_metric([reason.removeprefix("REFUSAL_REASON_").lower()], count)
        shed = CounterMetricFamily(
            "batchyard_shed_requests", "requests that left the queue for a higher priority"
        )
        shed.add_metric([], scheduler.door.shed)
        timeouts = CounterMetricFamily("batchyard_timeouts", "requests that ended at their deadline")
        timeouts.add_metric([], scheduler.timeouts)
        tokens = GaugeMetricFamily("batchyard_queue_tokens", "of requests that have not begun to run")
        tokens.add_metric([], scheduler.door.size.tokens)
        tenants = GaugeMetricFamily(
            "batchyard_tenants", "tenants with requests, or with more than their share"
        )
        tenants.add_metric([], len(scheduler.tenants))
        yield from (preemptions, refused, shed, timeouts, tokens, tenants)

    def _steps(self) -> Iterator[Metric]:
        steps = CounterMetricFamily("batchyard_steps", "steps answered", labels=["worker"])
        seconds = CounterMetricFamily("batchyard_step_seconds", "from sending to answer", labels=["worker"])
        tokens = CounterMetricFamily("batchyard_generated_tokens", "tokens delivered", labels=["worker"])
        for lane in self._scheduler.lanes:
            steps.add_metric([lane.name], lane.tally.steps)
            seconds.add_metric([lane.name], lane.tally.step_seconds)
            tokens.add_metric([lane.name], lane.tally.tokens)
        yield from (steps, seconds, tokens)

    def _sick(self) -> Iterator[Metric]:
        losses = CounterMetricFamily("batchyard_worker_losses", "streams that broke", labels=["worker"])
        opened = CounterMetricFamily(
            "batchyard_breaker_opened", "times a worker that flaps was left alone", labels=["worker"]
        )
        for lane in self._scheduler.lanes:
            losses.add_metric([lane.name], lane.tally.losses)
            opened.add_metric([lane.name], lane.breaker.opened)
        suspects = GaugeMetricFamily("batchyard_suspects", "requests with which workers were lost")
        suspects.add_metric([], len(self._scheduler.suspects))
        failed = CounterMetricFamily("batchyard_failed_requests", "requests that killed workers")
        failed.add_metric([], self._scheduler.suspects.failed)
        yield from (losses, opened, suspects, failed)


def serve_metrics(scheduler: Scheduler, lease: Lease, port: int) -> WSGIServer:
    """Serves /metrics on all addresses at `port`; the server is shut down by its owner."""
    registry = CollectorRegistry(auto_describe=True)
    registry.register(SchedulerCollector(scheduler, lease))
    server, _ = start_http_server(port, registry=registry)
    return server
