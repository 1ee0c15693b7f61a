"""Metrics of each worker, as the scheduler sees it: state, memory, and what its steps were."""

from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from scheduler.core import Scheduler
from scheduler.lane import Lane


def worker_metrics(scheduler: Scheduler) -> Iterator[Metric]:
    """One sample per series, now."""
    lanes = list(scheduler.lanes)
    yield from _states(lanes)
    yield from _memory(lanes)
    yield from _steps(lanes)
    yield from _step_sizes(lanes)
    yield from _losses(lanes)


def _states(lanes: Sequence[Lane]) -> Iterator[Metric]:
    known = GaugeMetricFamily("batchyard_worker_info", "1", labels=["worker", "address", "device"])
    connected = GaugeMetricFamily("batchyard_worker_connected", "1 while connected", labels=["worker"])
    draining = GaugeMetricFamily(
        "batchyard_worker_draining", "1 from being drained until it is restarted", labels=["worker"]
    )
    in_flight = GaugeMetricFamily("batchyard_steps_in_flight", "steps sent, not answered", labels=["worker"])
    for lane in lanes:
        known.add_metric([lane.name, lane.address, lane.worker.device if lane.worker else ""], 1)
        connected.add_metric([lane.name], lane.connected)
        draining.add_metric([lane.name], lane.draining)
        in_flight.add_metric([lane.name], lane.steps_in_flight)
    yield from (known, connected, draining, in_flight)


def _memory(lanes: Sequence[Lane]) -> Iterator[Metric]:
    blocks = GaugeMetricFamily("batchyard_kv_blocks", "KV blocks by state", labels=["worker", "state"])
    usage = GaugeMetricFamily(
        "batchyard_kv_usage_ratio", "KV blocks held by requests, of all", labels=["worker"]
    )
    rows = GaugeMetricFamily("batchyard_rows", "rows in use", labels=["worker"])
    most = GaugeMetricFamily("batchyard_max_rows", "rows that there are", labels=["worker"])
    for lane in lanes:
        if batcher := lane.batcher:
            pool = batcher.pool
            for state, count in (("free", pool.free), ("held", pool.held), ("cached", pool.cached)):
                blocks.add_metric([lane.name, state], count)
            usage.add_metric([lane.name], pool.held / pool.num_blocks)
            rows.add_metric([lane.name], batcher.rows.taken)
            most.add_metric([lane.name], batcher.rows.max_rows)
    yield from (blocks, usage, rows, most)


def _steps(lanes: Sequence[Lane]) -> Iterator[Metric]:
    steps = CounterMetricFamily("batchyard_steps", "steps answered", labels=["worker"])
    seconds = CounterMetricFamily("batchyard_step_seconds", "from sending to answer", labels=["worker"])
    busy = CounterMetricFamily(
        "batchyard_busy_seconds", "the device computed, as the worker says", labels=["worker"]
    )
    tokens = CounterMetricFamily("batchyard_generated_tokens", "tokens delivered", labels=["worker"])
    computed = CounterMetricFamily(
        "batchyard_computed_tokens", "tokens computed, of prompts and of answers", labels=["worker", "kind"]
    )
    for lane in lanes:
        tally = lane.tally
        steps.add_metric([lane.name], tally.steps)
        seconds.add_metric([lane.name], tally.step_seconds)
        busy.add_metric([lane.name], tally.busy_us / 1e6)
        tokens.add_metric([lane.name], tally.tokens)
        computed.add_metric([lane.name, "prompt"], tally.prompt_tokens)
        computed.add_metric([lane.name, "answer"], tally.answer_tokens)
    yield from (steps, seconds, busy, tokens, computed)


def _step_sizes(lanes: Sequence[Lane]) -> Iterator[Metric]:
    rows = HistogramMetricFamily("batchyard_step_rows", "rows that took part in a step", labels=["worker"])
    tokens = HistogramMetricFamily("batchyard_step_tokens", "tokens computed in a step", labels=["worker"])
    for lane in lanes:
        lane.tally.rows.report(rows, [lane.name])
        lane.tally.step_tokens.report(tokens, [lane.name])
    yield from (rows, tokens)


def _losses(lanes: Sequence[Lane]) -> Iterator[Metric]:
    losses = CounterMetricFamily("batchyard_worker_losses", "streams that broke", labels=["worker"])
    opened = CounterMetricFamily(
        "batchyard_breaker_opened", "times a worker that flaps was left alone", labels=["worker"]
    )
    for lane in lanes:
        losses.add_metric([lane.name], lane.tally.losses)
        opened.add_metric([lane.name], lane.breaker.opened)
    yield from (losses, opened)
