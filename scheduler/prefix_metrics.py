"""Metrics of the prefix cache by tier, `gpu` (the device, whatever it is) and `host`, and of its mirror."""

from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from prefix_cache.mirror import PrefixMirror
from scheduler.core import Scheduler
from scheduler.lane import Lane


def prefix_metrics(scheduler: Scheduler) -> Iterator[Metric]:
    """One sample per series, now."""
    prompts = CounterMetricFamily("batchyard_prompt_tokens", "of requests that began to run")
    prompts.add_metric([], scheduler.prompt_tokens)
    hits = CounterMetricFamily(
        "batchyard_prefix_hit_tokens", "prompt tokens found in a cache, by where", labels=["tier"]
    )
    hits.add_metric(["gpu"], scheduler.hits.device)
    hits.add_metric(["host"], scheduler.hits.host)
    yield from (prompts, hits)
    yield from _blocks(scheduler.lanes)
    yield from _moves(scheduler.lanes)
    if scheduler.mirror:
        yield from _mirror(scheduler.mirror)


def _blocks(lanes: Sequence[Lane]) -> Iterator[Metric]:
    evictions = CounterMetricFamily(
        "batchyard_evicted_blocks", "blocks that lost a cached prefix to others", labels=["worker", "tier"]
    )
    host = GaugeMetricFamily("batchyard_host_blocks", "host blocks by state", labels=["worker", "state"])
    for lane in lanes:
        counts = lane.tally.caches(lane.batcher)
        evictions.add_metric([lane.name, "gpu"], counts.evicted)
        evictions.add_metric([lane.name, "host"], counts.host_evicted)
        if lane.batcher:
            pool = lane.batcher.tiers.host
            for state, count in (("free", pool.free), ("cached", pool.cached), ("saving", pool.saving)):
                host.add_metric([lane.name, state], count)
    yield from (evictions, host)


def _moves(lanes: Sequence[Lane]) -> Iterator[Metric]:
    labels = ["worker", "direction"]
    moved = CounterMetricFamily(
        "batchyard_moved_blocks", "blocks saved to host memory and loaded", labels=labels
    )
    seconds = CounterMetricFamily("batchyard_move_seconds", "what the copies took", labels=labels)
    for lane in lanes:
        counts = lane.tally.caches(lane.batcher)
        moved.add_metric([lane.name, "save"], counts.saved)
        moved.add_metric([lane.name, "load"], counts.loaded)
        seconds.add_metric([lane.name, "save"], counts.save_us / 1e6)
        seconds.add_metric([lane.name, "load"], counts.load_us / 1e6)
    latency = HistogramMetricFamily(
        "batchyard_move_latency_seconds", "from a step that orders moves to their end", labels=labels
    )
    for lane in lanes:
        lane.tally.saves.report(latency, [lane.name, "save"])
        lane.tally.loads.report(latency, [lane.name, "load"])
    yield from (moved, seconds, latency)


def _mirror(mirror: PrefixMirror) -> Iterator[Metric]:
    lag = GaugeMetricFamily("batchyard_mirror_lag", "blocks not written to Redis yet")
    lag.add_metric([], mirror.lag)
    away = GaugeMetricFamily("batchyard_mirror_away", "1 while Redis does not take what is written")
    away.add_metric([], mirror.away)
    seconds = GaugeMetricFamily(
        "batchyard_mirror_lag_seconds", "for how long the first of these has waited to be written"
    )
    seconds.add_metric([], mirror.lag_seconds)
    yield from (lag, seconds, away)
