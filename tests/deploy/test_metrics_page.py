"""docs/metrics.md has every metric that a process tells of, and no other."""

import re
from pathlib import Path

from gateway.metrics import ALIASES as OF_GATEWAYS
from gateway.metrics import Metrics
from gpu_worker.metrics import WorkerMetrics
from prefix_cache.mirror import PrefixMirror
from scheduler.demand_meter import DemandMeter
from scheduler.metrics import ALIASES as OF_SCHEDULERS
from scheduler.metrics import SchedulerCollector
from tests.scheduler.helpers import held_lease, make_scheduler

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()


def section(title):
    return PAGE.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def documented(*titles):
    return {name for title in titles for name in re.findall(r"^\| `(\w+)", section(title), re.M)}


def told(*collectors):
    return {
        metric.name + ("_total" if metric.type == "counter" else "")
        for collector in collectors
        for metric in collector.collect()
        if metric.name.startswith("batchyard_")
    }


def test_gateways():
    assert documented("Gateways", "Every process") == told(Metrics().registry)


def test_workers():
    assert documented("Workers", "Every process") == told(WorkerMetrics(1).registry)


async def test_the_scheduler():
    mirror = PrefixMirror("redis://127.0.0.1:1/0")
    scheduler = make_scheduler(mirror=mirror)
    books = SchedulerCollector(scheduler, held_lease(), DemandMeter(scheduler, 1.0))
    assert documented("The scheduler") == told(books)
    await mirror.close()


def test_aliases():
    for title, aliases in (("Gateways", OF_GATEWAYS), ("The scheduler", OF_SCHEDULERS)):
        rows = re.findall(r"^\| `(\w+)` .*\|(.*)\|$", section(title), re.M)
        by_name = {name.removesuffix("_total"): set(re.findall(r"vllm:\w+", names)) for name, names in rows}
        for alias in aliases:
            assert any(
                name.removesuffix("_total") == alias.name.removesuffix("_total")
                for name in by_name[alias.source]
            ), alias
        assert sum(map(len, by_name.values())) == len(aliases)
