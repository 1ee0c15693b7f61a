"""The process's own health, measured in this one."""

import asyncio
import itertools
import time

import pytest
from prometheus_client import CollectorRegistry

from batchyard.metrics import vitals
from batchyard.metrics.vitals import SATURATION, Clocks, Vitals, read_clocks, usable_cpus


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def test_shares_of_the_time_that_passed_and_lateness(monkeypatch):
    monkeypatch.setattr(vitals, "_LOOK_EVERY_S", 0.01)
    times = itertools.count()

    def clocks():
        second = next(times)
        return Clocks(wall=second, thread=0.75 * second, process=0.5 * usable_cpus() * second)

    registry = CollectorRegistry()
    task = asyncio.create_task(Vitals(registry, clocks).run())

    def value(name, **labels):
        return registry.get_sample_value(name, labels)

    await until(lambda: value(SATURATION, of="event_loop"))
    assert value(SATURATION, of="event_loop") == 0.75
    assert value(SATURATION, of="process") == pytest.approx(0.5)

    def late():
        lag = "batchyard_event_loop_lag_seconds"
        return value(f"{lag}_count") - value(f"{lag}_bucket", le="0.1")

    before = late()

    def blocked():
        time.sleep(0.15)
        return late() > before

    await until(blocked)
    task.cancel()


def test_the_clocks_are_those_of_this_thread_and_process():
    before = read_clocks()
    while (now := read_clocks()).thread - before.thread < 0.01:
        pass
    assert now.wall - before.wall >= 0.009
    assert now.process - before.process >= 0.009


def test_a_quota_counts(tmp_path):
    quota = tmp_path / "cpu.max"
    everything = usable_cpus(quota)
    assert everything >= 1
    quota.write_text("50000 100000\n")
    assert usable_cpus(quota) == 0.5
    quota.write_text("max 100000\n")
    assert usable_cpus(quota) == everything
