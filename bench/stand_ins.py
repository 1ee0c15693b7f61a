"""Gateways and a scheduler as `batchyard serve` runs them, before stand-in workers; and what they take."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from batchyard.config import ServeSettings
from batchyard.plan import ProcessSpec, Role, plan, this_machine
from bench.fleet import free_port
from bench.service import environment

_READY_S, _END_S = 60.0, 20.0
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Fleet:
    """Processes by name: `gateway` or `gateway-0` and so on, `scheduler`, `worker-0` and so on."""

    port: int
    folder: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def records(self) -> list[Path]:
        """What the workers wrote down, once they have ended."""
        return sorted(self.folder.glob("worker-*.npz"))

    def pids(self) -> dict[str, int]:
        """By name."""
        return {name: process.pid for name, process in self.processes.items()}

    def end_workers(self) -> list[Path]:
        """Ends the stand-ins; their records."""
        workers = [process for name, process in self.processes.items() if name.startswith("worker")]
        for process in workers:
            process.send_signal(signal.SIGTERM)
        for process in workers:
            process.wait(_END_S)
        return self.records


WORKERS: Mapping[Role, str | None] = {"worker": "bench.simulation.stand_in"}
SCHEDULER: Mapping[Role, str | None] = {"worker": None, "scheduler": "bench.simulation.pulse"}


@contextlib.contextmanager
def stand_ins(
    workers: int,
    gateways: int,
    settings: Mapping[str, object] | None = None,
    instead: Mapping[Role, str | None] = WORKERS,
) -> Iterator[Fleet]:
    """Starts all and waits until it is ready; ended with the block. `settings` are those of `serve`.

    `instead` of a role's own program a module is run, or nothing. Raises RuntimeError, with what the
    processes logged, when they do not become ready.
    """
    port = free_port()
    mine = {"workers": workers, "gateways": gateways, "port": port, "grpc_port": 0}
    serve = ServeSettings.model_validate({"device": "cpu", **mine, **(settings or {})})
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        fleet = Fleet(port, Path(name))
        for spec in plan(serve, fleet.folder, this_machine({}), environment({})):
            command = _command(spec, fleet.folder, instead)
            if command:
                fleet.processes[spec.name] = process = _start(spec, command, fleet.folder)
                stack.callback(_end, process)
        _wait_ready(fleet)
        yield fleet


def _command(spec: ProcessSpec, folder: Path, instead: Mapping[Role, str | None]) -> list[str]:
    if spec.role not in instead:
        return list(spec.command)
    module = instead[spec.role]
    if module is None:
        return []
    address, record = f"unix:{folder}/{spec.name}.sock", folder / f"{spec.name}.npz"
    return [sys.executable, "-m", module, address, spec.name, str(record)]


def _start(spec: ProcessSpec, command: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
    with (folder / f"{spec.name}.log").open("wb") as log:
        # They end when their standard input does, so they cannot outlive us however we end.
        return subprocess.Popen(command, env=spec.env, stdin=subprocess.PIPE, stdout=log, stderr=log)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdin:
        process.stdin.close()


def _wait_ready(fleet: Fleet) -> None:
    deadline = time.monotonic() + _READY_S
    # Each gateway takes a part of the connections to the port they share: all must be ready.
    ready = 0
    while ready < 8 * len(fleet.processes):
        with contextlib.suppress(httpx.HTTPError):
            response = httpx.get(f"http://127.0.0.1:{fleet.port}/ready", timeout=5, trust_env=False)
            ready = ready + 1 if response.status_code == 200 else 0
            if ready:
                continue
        if time.monotonic() > deadline or any(process.poll() for process in fleet.processes.values()):
            logs = [path.read_text()[-1000:] for path in sorted(fleet.folder.glob("*.log"))]
            raise RuntimeError("the processes did not become ready:\n" + "\n".join(logs))
        time.sleep(0.1)


@dataclass(frozen=True, slots=True)
class Use:
    """Of one process: MiB in memory, and the CPU seconds it has had."""

    mib: float
    cpu_s: float


class Meter:
    """Looks at processes once a second, in a thread of its own, until it is stopped."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self.seen: list[tuple[float, dict[str, Use]]] = []  # by `time.perf_counter`
        self._pids = dict(pids)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Looks a last time."""
        self._stop.set()
        self._thread.join()

    def between(self, start: float, end: float) -> dict[str, tuple[Use, Use, float]]:
        """By process: how it stood nearest to `start` and `end`, and the cores it used between."""
        first, last = (min(self.seen, key=lambda seen: abs(seen[0] - at)) for at in (start, end))
        seconds = max(1e-9, last[0] - first[0])
        return {
            name: (use, last[1][name], (last[1][name].cpu_s - use.cpu_s) / seconds)
            for name, use in first[1].items()
        }

    def _run(self) -> None:
        while True:
            self.seen.append((time.perf_counter(), {name: use_of(pid) for name, pid in self._pids.items()}))
            if self._stop.wait(1.0):
                self.seen.append(
                    (time.perf_counter(), {name: use_of(pid) for name, pid in self._pids.items()})
                )
                return


def use_of(pid: int) -> Use:
    """What a process takes now."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    # After the name, which may have spaces: the state, and from the 12th on user and system time.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return Use(pages * _PAGE / 2**20, (int(fields[11]) + int(fields[12])) / _TICKS)


def machine() -> str:
    """Cores and the load before, for a table's head."""
    return f"{len(os.sched_getaffinity(0))} cores, load average {os.getloadavg()[0]:.1f}"
