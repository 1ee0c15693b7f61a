"""What a service uses while it is measured: memory, cores, GPUs, and its workers' time in steps."""

import asyncio
import contextlib
import os
import re
import shutil
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from batchyard.loadtest.client import Client, parse_url
from batchyard.loadtest.serving import Served

_EVERY_S = 1.0
_GIB = 1 << 30
_QUERY = ("--query-gpu=memory.used,utilization.gpu", "--format=csv,noheader,nounits")


@dataclass
class Usage:
    """None: this machine does not tell. GPU figures are those of all GPUs, whoever uses them."""

    rss_gib: float | None = (
        None  # resident memory of all its processes, at its highest; shared pages count twice
    )
    cpu_cores: float | None = None  # busy on average
    worker_busy: float | None = None  # share of the time that a worker spent in steps
    gpu_gib: float | None = None  # memory in use, at its highest
    gpu_busy: float | None = None  # share of the time with a kernel running


@dataclass
class _Samples:
    rss: list[int] = field(default_factory=list)
    gpu_mib: list[float] = field(default_factory=list)
    gpu_percent: list[float] = field(default_factory=list)


@contextlib.asynccontextmanager
async def watched(served: Served) -> AsyncIterator[Usage]:
    """Watches a service during the block; the usage is filled in at its end."""
    usage, samples = Usage(), _Samples()
    start, cpu, steps = time.monotonic(), _cpu_seconds(served.pid), await _step_seconds(served)
    sampling = asyncio.create_task(_sample(served.pid, samples))
    try:
        yield usage
    finally:
        sampling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sampling
    seconds = time.monotonic() - start
    cpu_after, steps_after = _cpu_seconds(served.pid), await _step_seconds(served)
    if samples.rss:
        usage.rss_gib = max(samples.rss) / _GIB
    if cpu is not None and cpu_after is not None:
        usage.cpu_cores = (cpu_after - cpu) / seconds
    if steps is not None and steps_after is not None:
        usage.worker_busy = (steps_after - steps) / seconds / len(served.worker_metrics)
    if samples.gpu_mib:
        usage.gpu_gib = max(samples.gpu_mib) / 1024
        usage.gpu_busy = sum(samples.gpu_percent) / len(samples.gpu_percent) / 100


async def _sample(pid: int, samples: _Samples) -> None:
    while True:
        if rss := sum(_rss(process) for process in family(pid)):
            samples.rss.append(rss)
        for used, percent in await _gpus():
            samples.gpu_mib.append(used)
            samples.gpu_percent.append(percent)
        await asyncio.sleep(_EVERY_S)


def family(pid: int) -> list[int]:
    """`pid` and all that come from it; nothing where there is no /proc."""
    children: dict[int, list[int]] = {}
    for process in _processes():
        with contextlib.suppress(OSError, IndexError):
            children.setdefault(int(_stat(process)[1]), []).append(process)
    if not children:
        return []
    found = [pid]
    for process in found:  # which grows meanwhile
        found += children.get(process, [])
    return found


def _processes() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name, which may itself hold anything: state, parent, ..."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _rss(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _cpu_seconds(pid: int) -> float | None:
    """Of a process and all that come from it."""
    ticks = 0
    for process in family(pid):
        with contextlib.suppress(OSError, IndexError):
            ticks += sum(map(int, _stat(process)[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK") if ticks else None


async def _step_seconds(served: Served) -> float | None:
    """That the workers have spent in steps, by their own /metrics."""
    total = 0.0
    for port in served.worker_metrics:
        client = Client(parse_url(f"http://127.0.0.1:{port}"), None, timeout_s=5)
        body = (await client.get("/metrics")).body.decode(errors="replace")
        client.close()
        found = re.findall(r"^batchyard_worker_step_seconds_sum(?:\{.*\})? (\S+)$", body, re.MULTILINE)
        if not found:
            return None
        total += sum(map(float, found))
    return total


async def _gpus() -> list[tuple[float, float]]:
    """MiB in use and per cent busy of all GPUs together, by nvidia-smi; nothing where there is none."""
    if (program := shutil.which("nvidia-smi")) is None:
        return []
    asked = await asyncio.create_subprocess_exec(
        program, *_QUERY, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    output, _ = await asked.communicate()
    rows = [line.split(",") for line in output.decode().splitlines()]
    try:
        used = sum(float(memory) for memory, _ in rows)
        busy = sum(float(percent) for _, percent in rows) / len(rows)
    except (ValueError, ZeroDivisionError):  # a GPU that does not tell
        return []
    return [(used, busy)]
