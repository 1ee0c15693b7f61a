"""The worker's /metrics."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from batchyard.errors import AddressInUse
from gpu_worker.observers import FinishedStep

_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)  # seconds


class WorkerMetrics:
    """Counts steps, in a registry of its own. A `StepObserver`."""

    def __init__(self, num_blocks: int) -> None:
        self.registry = CollectorRegistry()
        self._steps = Counter("batchyard_worker_steps", "steps done", registry=self.registry)
        self._tokens = Counter("batchyard_worker_tokens", "tokens computed", registry=self.registry)
        self._busy = Histogram(
            "batchyard_worker_step_seconds",
            "model and sampling of one step",
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._queued = Counter(
            "batchyard_worker_queue_seconds", "steps waited at the worker", registry=self.registry
        )
        self._idle = Counter(
            "batchyard_worker_device_idle_seconds",
            "the device had nothing to do although the next step had come",
            registry=self.registry,
        )
        self._rows = Gauge("batchyard_worker_rows", "rows in use", registry=self.registry)
        self._held = Gauge(
            "batchyard_worker_held_blocks",
            "blocks of rows in use; one that rows share counts for each",
            registry=self.registry,
        )
        blocks = Gauge("batchyard_worker_blocks", "blocks of the KV cache", registry=self.registry)
        blocks.set(num_blocks)

    def observe(self, step: FinishedStep) -> None:
        """Counts a step."""
        self._steps.inc()
        self._tokens.inc(step.load.num_tokens)
        self._busy.observe(step.times.busy_us / 1e6)
        self._queued.inc(step.times.queue_us / 1e6)
        self._idle.inc(step.times.idle_us / 1e6)
        self._rows.set(step.load.num_rows)
        self._held.set(step.load.num_blocks)

    def reset(self) -> None:
        """No row is in use."""
        self._rows.set(0)
        self._held.set(0)

    def serve(self, port: int) -> Callable[[], None]:
        """Serves /metrics at `port` until what this returns is called. Raises AddressInUse."""
        try:
            server, thread = start_http_server(port, registry=self.registry)
        except OSError as error:
            raise AddressInUse(f"cannot serve metrics on port {port}: {error.strerror}") from error

        def close() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return close
