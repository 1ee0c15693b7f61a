"""What `batchyard serve` runs: the processes, their commands and their environments.

RUN_DIR/worker-0.sock  ◀── scheduler ── RUN_DIR/scheduler.sock ◀── gateway (host:port)
RUN_DIR/worker-1.sock  ◀──┘                                    ◀── gateway-1 (the same port)

Of several schedulers each has all workers, and each worker and each gateway has all schedulers.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from batchyard.config import GatewaySettings, SchedulerSettings, ServeSettings, Settings, WorkerSettings
from batchyard.errors import ConfigError
from batchyard.settings import PREFIX, to_env

Role = Literal["worker", "scheduler", "gateway"]

S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class ProcessSpec:
    """A process to run: `env` is its whole environment."""

    name: str
    role: Role
    command: tuple[str, ...]
    env: Mapping[str, str]


@dataclass(frozen=True)
class Machine:
    """What the processes share: the ids of the GPUs, the number of CPU cores."""

    gpus: Sequence[str]
    cores: int


def this_machine(environ: Mapping[str, str]) -> Machine:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves us, and the cores we may use. Does not import torch."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if (visible := environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        gpus = [gpu.strip() for gpu in visible.split(",")]
        return Machine([gpu for gpu in gpus if gpu and not gpu.startswith("-")], cores)
    if (nvidia_smi := shutil.which("nvidia-smi")) is None:
        return Machine([], cores)
    listed = subprocess.run([nvidia_smi, "-L"], capture_output=True, text=True, check=False).stdout
    return Machine([str(n) for n in range(listed.count("GPU "))], cores)


def plan(
    settings: ServeSettings, run_dir: Path, machine: Machine, environ: Mapping[str, str]
) -> list[ProcessSpec]:
    """The processes in the order to start them; the last to start is the first to end.

    Sockets and the metrics that gateways share are in `run_dir`. Raises ConfigError for too few GPUs.
    """
    specs = [_worker(settings, number, run_dir, machine, environ) for number in range(settings.workers)]
    specs += [_scheduler(settings, number, run_dir, environ) for number in range(settings.schedulers)]
    specs += [_gateway(settings, number, run_dir, environ) for number in range(settings.gateways)]
    return specs


def _worker(
    settings: ServeSettings, number: int, run_dir: Path, machine: Machine, environ: Mapping[str, str]
) -> ProcessSpec:
    name = f"worker-{number}"
    mine = _narrow(
        settings,
        WorkerSettings,
        worker_id=name,
        listen=_socket(run_dir, name),
        scheduler_address=_schedulers(settings, run_dir),
        metrics_port=settings.metrics_port and settings.metrics_port + 1 + number,
    )
    env = _environment(environ, mine) | _share(settings, number, machine, environ)
    return ProcessSpec(name, "worker", _command("worker"), env)


def _scheduler(
    settings: ServeSettings, number: int, run_dir: Path, environ: Mapping[str, str]
) -> ProcessSpec:
    name = _scheduler_names(settings)[number]
    workers = tuple(_socket(run_dir, f"worker-{number}") for number in range(settings.workers))
    mine = _narrow(
        settings,
        SchedulerSettings,
        scheduler_listen=_socket(run_dir, name),
        worker_addresses=workers,
        # The first one's, then the workers', then those of its standbys.
        metrics_port=settings.metrics_port
        and settings.metrics_port + (settings.workers + number if number else 0),
    )
    return ProcessSpec(name, "scheduler", _command("scheduler"), _environment(environ, mine))


def _scheduler_names(settings: ServeSettings) -> list[str]:
    several = settings.schedulers > 1
    return [f"scheduler-{number}" if several else "scheduler" for number in range(settings.schedulers)]


def _schedulers(settings: ServeSettings, run_dir: Path) -> tuple[str, ...]:
    return tuple(_socket(run_dir, name) for name in _scheduler_names(settings))


def _gateway(settings: ServeSettings, number: int, run_dir: Path, environ: Mapping[str, str]) -> ProcessSpec:
    several = settings.gateways > 1
    mine = _narrow(
        settings,
        GatewaySettings,
        share_port=several,
        gateway_count=settings.gateways,
        gateway_folder=str(run_dir) if several else None,
        scheduler_address=_schedulers(settings, run_dir),
    )
    env = _environment(environ, mine)
    if several:
        metrics = run_dir / "metrics"
        metrics.mkdir(exist_ok=True)
        env["PROMETHEUS_MULTIPROC_DIR"] = str(metrics)
    return ProcessSpec(f"gateway-{number}" if several else "gateway", "gateway", _command("gateway"), env)


def _share(
    settings: ServeSettings, number: int, machine: Machine, environ: Mapping[str, str]
) -> dict[str, str]:
    """One worker's part of the machine."""
    if settings.device != "cpu" and machine.gpus:
        if settings.workers == 1:
            return {}
        if settings.workers > len(machine.gpus):
            raise ConfigError(
                f"--workers {settings.workers}: each needs a GPU of its own, and there are "
                f"{len(machine.gpus)}; ask for fewer, or for --device cpu"
            )
        return {"CUDA_VISIBLE_DEVICES": machine.gpus[number]}
    if "OMP_NUM_THREADS" in environ:
        return {}
    # A core is left to gateway, scheduler and clients: OpenMP's threads wait for each other by spinning, so
    # when one of them loses its core, all stand still for a time slice at nearly every operator.
    return {"OMP_NUM_THREADS": str(max(1, (machine.cores - 1) // settings.workers))}


def _narrow(settings: ServeSettings, cls: type[S], **changes: Any) -> S:
    """The part of `settings` that one process gets, its logs as JSON for us to read."""
    # Progress is logged at level info: it is for us, whatever the user wants to see.
    level = "debug" if settings.log_level == "debug" else "info"
    values = {name: getattr(settings, name) for name in cls.model_fields}
    return cls.model_validate(values | {"log_format": "json", "log_level": level} | changes)


def _environment(environ: Mapping[str, str], settings: Settings) -> dict[str, str]:
    """`environ` with `settings` in place of what it set, so that command line and file do not apply twice."""
    return {k: v for k, v in environ.items() if not k.startswith(PREFIX)} | to_env(settings)


def _command(name: str) -> tuple[str, ...]:
    # -P: a file in the current folder must not stand in for a library of the same name.
    return (sys.executable, "-P", "-m", "batchyard.lifeline", name)


def _socket(run_dir: Path, name: str) -> str:
    return f"unix:{run_dir}/{name}.sock"
