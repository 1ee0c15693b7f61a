"""What the worker counts for Prometheus."""

from prometheus_client import Counter, Gauge, Histogram

from batchyard.metrics.buckets import STEP_S
from batchyard.metrics.endpoint import new_registry
from batchyard.metrics.vitals import Vitals
from gpu_worker.observers import FinishedStep


class WorkerMetrics:
    """Counts steps, in a registry of its own. A `StepObserver`."""

    def __init__(self, num_blocks: int) -> None:
        self.registry = new_registry()
        self.vitals = Vitals(self.registry)
        self._steps = Counter("batchyard_worker_steps", "steps done", registry=self.registry)
        self._tokens = Counter("batchyard_worker_tokens", "tokens computed", registry=self.registry)
        self._busy = Histogram(
            "batchyard_worker_step_seconds",
            "model and sampling of one step",
            buckets=STEP_S,
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
