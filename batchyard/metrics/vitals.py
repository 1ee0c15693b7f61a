"""How the process itself does: how busy its event loop and its CPUs are, and by how much the loop is late.

Everything else that a process does waits for its event loop, and the loop is one thread: at 100% of one core
it is full, whatever the machine's average says.
"""

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Gauge, Histogram

from batchyard.metrics.buckets import LAG_S

SATURATION = "batchyard_cpu_saturation_ratio"
_LOOK_EVERY_S = 0.25
_LOOKS = 4  # from one reading of the CPU clocks to the next: they are a second apart
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


class Clocks(NamedTuple):
    """Seconds: of the wall, of CPU on this thread, and of CPU on all threads of the process."""

    wall: float
    thread: float
    process: float


class Vitals:
    """Looks four times a second. Where gateways share a port, each has a series of its own."""

    def __init__(self, registry: CollectorRegistry, clocks: Callable[[], Clocks] | None = None) -> None:
        self._clocks = clocks or read_clocks
        self._lag = Histogram(
            "batchyard_event_loop_lag_seconds",
            "By how much the event loop was late for a timer; four looks a second.",
            buckets=LAG_S,
            registry=registry,
        )
        self._saturation = Gauge(
            SATURATION,
            "Of the last second: how long the event loop's thread had a CPU (of=event_loop), and all threads "
            "had, of what the process may use (of=process).",
            ["of"],
            multiprocess_mode="liveall",
            registry=registry,
        )

    async def run(self) -> None:
        """Looks until cancelled. The event loop looked at is the one this runs on."""
        cpus = usable_cpus()
        before = self._clocks()
        while True:
            for _ in range(_LOOKS):
                due = time.perf_counter() + _LOOK_EVERY_S
                await asyncio.sleep(_LOOK_EVERY_S)
                self._lag.observe(max(0.0, time.perf_counter() - due))
            now = self._clocks()
            passed = now.wall - before.wall
            self._saturation.labels("event_loop").set((now.thread - before.thread) / passed)
            self._saturation.labels("process").set((now.process - before.process) / passed / cpus)
            before = now


def usable_cpus(quota: Path = _QUOTA) -> float:
    """How many CPUs' time the process may use: those it may run on, or less where its cgroup has a quota."""
    allowed = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    try:
        most, period = quota.read_text(encoding="ascii").split()
        return min(allowed, int(most) / int(period))
    except (OSError, ValueError):  # no cgroup v2, or "max": no quota
        return allowed


def read_clocks() -> Clocks:
    """Now, on the thread that asks."""
    return Clocks(time.perf_counter(), time.thread_time(), time.process_time())
