"""The kernel's out-of-memory killer, called on one worker: its control group has room for little more."""

import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from bench.chaos.clients import until
from bench.chaos.cluster import Cluster
from bench.chaos.errors import Unexpected

_LIMITS = {  # where control groups are made, and what limits their memory: version 1, version 2
    Path("/sys/fs/cgroup/memory"): "memory.limit_in_bytes",
    Path("/sys/fs/cgroup"): "memory.max",
}
_ROOM = 64 << 20  # bytes: what a process had before stays charged to where it was
_KILLED_S = 20.0


def kill_for_memory(name: str) -> Callable[[Cluster], Awaitable[None]]:
    """Has the kernel kill worker `name` while it takes memory; SIGKILL where control groups are not ours."""

    async def harm(cluster: Cluster) -> None:
        process = cluster.processes[name]
        group = _narrow_group(process.pid)
        if group:
            cluster.orders[name].give("eat")
        else:
            process.kill()
        await until(lambda: process.poll() is not None, _KILLED_S)
        cluster.orders[name].give("")
        code = cluster.forget(name)
        if group:
            group.rmdir()
        if code != -signal.SIGKILL:
            raise Unexpected(f"{name} ended with {code}, not by the kernel")

    return harm


def _narrow_group(pid: int) -> Path | None:
    """A new control group with process `pid` in it, and room for little more."""
    for root, limit in _LIMITS.items():
        group = root / f"batchyard-chaos-{pid}"
        with suppress(OSError):
            group.mkdir()
            (group / limit).write_text(str(_ROOM))
            (group / "cgroup.procs").write_text(str(pid))
            return group
        with suppress(OSError):
            group.rmdir()
    return None
