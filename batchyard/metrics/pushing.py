"""Whether a process sends its metrics by OTLP too; if not, nothing of that is even imported."""

import os
import socket
from collections.abc import Callable, Sequence

from prometheus_client.registry import Collector

from batchyard.config import Settings


def push_metrics(
    settings: Settings, service: str, instance: str, collectors: Sequence[Collector]
) -> Callable[[], None]:
    """Begins to send what `collectors` give to `settings.otlp`, if it is to. What ends it: it may wait.

    `service` and `instance` are the process's names, as in its traces.
    """
    if not (settings.otlp and settings.otlp_metrics_interval):
        return lambda: None
    # Imported here: it takes a sixth of a scheduler's start, and one that died is waited for.
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
    from opentelemetry.sdk.resources import Resource

    from batchyard.metrics.otlp import MetricExport

    exporter = OTLPMetricExporter(endpoint=settings.otlp, insecure=settings.otlp.startswith("http://"))
    # Instances of two machines may have one name; their counts must not be taken for one another's.
    resource = Resource.create(
        {
            "service.name": service,
            "service.instance.id": instance,
            "host.name": socket.gethostname(),
            "process.pid": os.getpid(),
        }
    )
    return MetricExport(exporter, resource, collectors, settings.otlp_metrics_interval).shutdown
