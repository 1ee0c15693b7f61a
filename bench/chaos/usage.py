"""What processes hold: memory, file descriptors, threads, asyncio tasks."""

import signal
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bench.chaos.clients import until
from bench.chaos.cluster import Cluster

_TOLD_S = 10.0
_GROWTH = 0.1  # of memory, as a share of what it was
_GROWN_MIB = 24.0
_MORE = 3  # connections, threads and tasks that come and go


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one process."""

    memory_mib: float  # resident
    descriptors: int
    threads: int
    tasks: int  # asyncio's; 0 of a Redis

    def __str__(self) -> str:
        return (
            f"{self.memory_mib:.0f} MiB, {self.descriptors} file descriptors, "
            f"{self.threads} threads, {self.tasks} tasks"
        )


async def usage(cluster: Cluster) -> dict[str, Usage]:
    """Of all processes, by name."""
    names = [name for name in cluster.processes if name != "redis"]
    for name in names:
        cluster.tasks_file(name).unlink(missing_ok=True)
        cluster.signal(name, signal.SIGUSR1)
    await until(lambda: all(cluster.tasks_file(name).exists() for name in names), _TOLD_S)
    return {name: _of(process.pid, cluster.tasks_file(name)) for name, process in cluster.processes.items()}


def growth(before: Mapping[str, Usage], after: Mapping[str, Usage]) -> Iterator[str]:
    """What is not flat, in words.

    A process may hold what any of its kind held: a standby takes over, and a worker gets another's streams.
    """
    for name, now in after.items():
        was = _most(usage for other, usage in before.items() if _kind(other) == _kind(name))
        if now.memory_mib > was.memory_mib * (1 + _GROWTH) + _GROWN_MIB:
            yield f"{name}: {was.memory_mib:.0f} MiB have become {now.memory_mib:.0f}"
        counts = (was.descriptors, was.threads, was.tasks), (now.descriptors, now.threads, now.tasks)
        if any(later > earlier + _MORE for earlier, later in zip(*counts, strict=True)):
            yield f"{name}: {was} have become {now}"


def _kind(name: str) -> str:
    return name.split("-")[0]


def _most(usages: Iterable[Usage]) -> Usage:
    found = list(usages)
    return Usage(
        max(usage.memory_mib for usage in found),
        max(usage.descriptors for usage in found),
        max(usage.threads for usage in found),
        max(usage.tasks for usage in found),
    )


def _of(pid: int, tasks_file: Path) -> Usage:
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
    )
    tasks = 0
    with suppress(FileNotFoundError):
        tasks = int(tasks_file.read_text())
    descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return Usage(int(status["VmRSS"].split()[0]) / 1024, descriptors, int(status["Threads"]), tasks)
