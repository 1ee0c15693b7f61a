"""Metrics by tenant: who fills the queue, and who is not served. Tenants without requests have no series.

The first hundred that were seen have a label of their own, the others share one.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator

from prometheus_client.core import GaugeMetricFamily, Metric

from batchyard.metrics.bounded_names import BoundedNames
from scheduler.core import Scheduler


class TenantMetrics:
    """Reads the books of fairness and of the door."""

    def __init__(self, scheduler: Scheduler, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` is the scheduler's, in seconds."""
        self._scheduler = scheduler
        self._clock = clock
        self._names = BoundedNames()

    def collect(self) -> Iterator[Metric]:
        """One sample per series, now."""
        known = GaugeMetricFamily("batchyard_tenants", "tenants with requests, or with more than their share")
        known.add_metric([], len(self._scheduler.tenants))
        yield from (known, self._requests(), self._tokens(), self._oldest())

    def _requests(self) -> Metric:
        counts: dict[tuple[str, str], int] = defaultdict(int)
        for tenant in self._scheduler.tenants.present():
            label = self._names.label(tenant.name)
            counts[label, "waiting"] += tenant.waiting
            counts[label, "running"] += tenant.rows
        requests = GaugeMetricFamily(
            "batchyard_tenant_requests", "a tenant's requests by state", labels=["tenant", "state"]
        )
        for labels, count in counts.items():
            requests.add_metric(labels, count)
        return requests

    def _tokens(self) -> Metric:
        tokens: dict[str, float] = defaultdict(float)
        for name, size in self._scheduler.door.by_tenant.items():
            tokens[self._names.label(name)] += size.tokens
        family = GaugeMetricFamily(
            "batchyard_tenant_queue_tokens",
            "of a tenant's requests that have not begun to run",
            labels=["tenant"],
        )
        for label, count in tokens.items():
            family.add_metric([label], count)
        return family

    def _oldest(self) -> Metric:
        now = self._clock()
        waits: dict[str, float] = defaultdict(float)
        for name, arrived in self._scheduler.door.oldest().items():
            label = self._names.label(name)
            waits[label] = max(waits[label], now - arrived)
        family = GaugeMetricFamily(
            "batchyard_tenant_oldest_wait_seconds",
            "for how long the first of a tenant's requests that have not begun to run has waited",
            labels=["tenant"],
        )
        for label, seconds in waits.items():
            family.add_metric([label], seconds)
        return family
