"""The metrics of /metrics by OTLP: read now and then on a thread of its own, and sent to a collector.

The OpenTelemetry SDK can show its metrics to Prometheus, but not the reverse. So what a Prometheus collector
gives is written down as OTLP's data, which is the same under other names, and the SDK's exporter sends it:

    counter       Sum, cumulative and monotonic
    gauge         Gauge
    histogram     Histogram, cumulative; OTLP's buckets do not contain those below them

https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/
"""

import math
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Protocol

import structlog
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.metrics.export import Metric as OtlpMetric
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

log = structlog.get_logger()

_SCOPE = InstrumentationScope("batchyard")
_TIMEOUT_MS = 5_000
_UNITS = {"seconds": "s", "bytes": "By", "ratio": "1"}


class Exporter(Protocol):
    """As the SDK's `OTLPMetricExporter`."""

    def export(self, metrics_data: MetricsData, timeout_millis: float = ...) -> object: ...

    def shutdown(self) -> None: ...


class MetricExport:
    """Sends what `collectors` give every `interval_s` seconds, and once more at the end."""

    def __init__(
        self, exporter: Exporter, resource: Resource, collectors: Sequence[Collector], interval_s: float
    ) -> None:
        self._exporter = exporter
        self._resource = resource
        self._collectors = collectors
        self._interval_s = interval_s
        self._started_ns = time.time_ns()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def shutdown(self) -> None:
        """Sends what is left. Called once, when the process ends."""
        self._over.set()
        self._thread.join()
        self._exporter.shutdown()

    def _run(self) -> None:
        while True:
            ended = self._over.wait(self._interval_s)
            try:
                self._exporter.export(self._data(), timeout_millis=_TIMEOUT_MS)
            except Exception as error:  # of any kind: metrics must not end what they tell of
                log.warning("metrics_not_exported", error=str(error))
            if ended:
                return

    def _data(self) -> MetricsData:
        now = time.time_ns()
        metrics = [
            converted
            for collector in self._collectors
            for metric in collector.collect()
            if (converted := to_otlp(metric, self._started_ns, now))
        ]
        scope = ScopeMetrics(_SCOPE, metrics, "")
        return MetricsData([ResourceMetrics(self._resource, [scope], "")])


def to_otlp(metric: Metric, started_ns: int, now_ns: int) -> OtlpMetric | None:
    """The same as OTLP's data, cumulative since `started_ns`; None for what is no number."""
    data: Sum | Gauge | Histogram
    if metric.type == "counter":
        points = _numbers(metric.samples, started_ns, now_ns)
        data = Sum(points, AggregationTemporality.CUMULATIVE, is_monotonic=True)
    elif metric.type == "gauge":
        data = Gauge(_numbers(metric.samples, started_ns, now_ns))
    elif metric.type == "histogram":
        data = Histogram(_histograms(metric.samples, started_ns, now_ns), AggregationTemporality.CUMULATIVE)
    else:
        return None
    unit = _UNITS.get(metric.name.rpartition("_")[2], "")
    return OtlpMetric(metric.name, metric.documentation, unit, data)


def _numbers(samples: Iterable[Sample], started_ns: int, now_ns: int) -> list[NumberDataPoint]:
    return [NumberDataPoint(sample.labels, started_ns, now_ns, sample.value) for sample in samples]


def _histograms(samples: Iterable[Sample], started_ns: int, now_ns: int) -> list[HistogramDataPoint]:
    """A point for each set of labels, whose samples follow one another: its buckets, upwards, and its sum."""
    reached: dict[tuple[tuple[str, str], ...], dict[float, int]] = {}
    sums: dict[tuple[tuple[str, str], ...], float] = {}
    for sample in samples:
        labels = tuple((name, value) for name, value in sample.labels.items() if name != "le")
        if sample.name.endswith("_bucket"):
            reached.setdefault(labels, {})[float(sample.labels["le"])] = int(sample.value)
        elif sample.name.endswith("_sum"):
            sums[labels] = sample.value
    return [
        _histogram(dict(labels), buckets, sums[labels], started_ns, now_ns)
        for labels, buckets in reached.items()
    ]


def _histogram(
    labels: dict[str, str], reached: dict[float, int], total: float, started_ns: int, now_ns: int
) -> HistogramDataPoint:
    bounds = sorted(reached)
    below = 0
    counts = []
    for bound in bounds:
        counts.append(reached[bound] - below)
        below = reached[bound]
    bounds = [bound for bound in bounds if bound != math.inf]
    return HistogramDataPoint(
        labels,
        started_ns,
        now_ns,
        below,
        total,
        counts,
        bounds,
        # Nobody knows the least and the most; None leaves them out, whatever the type says.
        min=None,  # type: ignore[arg-type]
        max=None,  # type: ignore[arg-type]
    )
