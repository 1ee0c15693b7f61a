"""The worker's /metrics over HTTP."""

import urllib.request

import pytest

from batchyard.errors import AddressInUse
from batchyard.metrics.endpoint import serve_metrics
from gpu_worker.launched import StepLoad
from gpu_worker.metrics import WorkerMetrics
from gpu_worker.observers import FinishedStep
from gpu_worker.step_clock import StepTimes
from protos.step_pb2 import StepBatch, StepResult


def test_metrics_are_served():
    metrics = WorkerMetrics(num_blocks=40)
    times = StepTimes(queue_us=500_000, forward_us=15_000, sample_us=1_000, idle_us=2_000, ended_ns=0)
    load = StepLoad(num_seqs=3, num_tokens=17, num_rows=4, num_blocks=9)
    metrics.observe(FinishedStep(StepBatch(), StepResult(), times, load))
    port, close = serve_metrics(0, [metrics.registry])
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        with pytest.raises(AddressInUse, match=f"metrics on port {port}"):
            serve_metrics(port, [WorkerMetrics(num_blocks=1).registry])
    finally:
        close()
    assert "batchyard_worker_steps_total 1.0" in lines
    assert "batchyard_worker_tokens_total 17.0" in lines
    assert "batchyard_worker_queue_seconds_total 0.5" in lines
    assert "batchyard_worker_device_idle_seconds_total 0.002" in lines
    assert 'batchyard_worker_step_seconds_bucket{le="0.01"} 0.0' in lines
    assert 'batchyard_worker_step_seconds_bucket{le="0.02"} 1.0' in lines
    assert "batchyard_worker_rows 4.0" in lines
    assert "batchyard_worker_held_blocks 9.0" in lines
    assert "batchyard_worker_blocks 40.0" in lines
    metrics.reset()
    assert metrics.registry.get_sample_value("batchyard_worker_rows") == 0
