"""The scheduler's /metrics: read from its state when Prometheus asks, so that a step pays next to nothing."""

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from batchyard.metrics.aliases import Alias, WithAliases
from scheduler.core import Scheduler
from scheduler.demand_meter import DemandMeter
from scheduler.lease import Lease
from scheduler.prefix_metrics import prefix_metrics
from scheduler.queue_metrics import queue_metrics
from scheduler.tenant_metrics import TenantMetrics
from scheduler.worker_metrics import worker_metrics

ALIASES = (
    Alias("vllm:num_requests_running", "batchyard_requests", where={"state": "running"}),
    Alias("vllm:num_requests_waiting", "batchyard_requests", where={"state": "waiting"}),
    Alias("vllm:kv_cache_usage_perc", "batchyard_kv_usage_ratio", keep={"worker": "engine"}),
    Alias("vllm:prefix_cache_queries", "batchyard_prompt_tokens"),
    Alias("vllm:prefix_cache_hits", "batchyard_prefix_hit_tokens", where={"tier": "gpu"}),
    Alias("vllm:external_prefix_cache_hits", "batchyard_prefix_hit_tokens", where={"tier": "host"}),
    Alias("vllm:num_preemptions", "batchyard_preemptions"),
    Alias("vllm:iteration_tokens_total", "batchyard_step_tokens", keep={"worker": "engine"}),
    Alias("vllm:request_queue_time_seconds", "batchyard_queue_time_seconds"),
    Alias("vllm:request_prefill_time_seconds", "batchyard_prefill_time_seconds"),
    Alias("vllm:request_decode_time_seconds", "batchyard_decode_time_seconds"),
)


class SchedulerCollector(Collector):
    """Reads the scheduler's books."""

    def __init__(self, scheduler: Scheduler, lease: Lease, demand: DemandMeter) -> None:
        self._scheduler = scheduler
        self._lease = lease
        self._demand = demand
        self._tenants = TenantMetrics(scheduler)

    def collect(self) -> Iterator[Metric]:
        """One sample per series, now."""
        scheduler = self._scheduler
        fence = GaugeMetricFamily("batchyard_scheduler_fence", "of the active scheduler; 0 on a standby")
        fence.add_metric([], self._lease.fence)
        yield fence
        if self._lease.fence:  # a standby knows of no load
            wanted = GaugeMetricFamily("batchyard_workers_wanted", "workers that the present load needs")
            wanted.add_metric([], self._demand.wanted)
            yield wanted
        yield from queue_metrics(scheduler)
        yield from self._tenants.collect()
        yield from worker_metrics(scheduler)
        yield from prefix_metrics(scheduler)


def with_aliases(collector: SchedulerCollector, scheduler: Scheduler, model_name: str | None) -> Collector:
    """And the same by vLLM's names. A model whose name nobody told is called what its workers call it."""

    def name() -> str:
        known = (lane.worker.model for lane in scheduler.lanes if lane.worker)
        return model_name or next(known, "")

    return WithAliases(collector, ALIASES, name)
