"""One load test against a running service: a process of its own, with a time limit, and what the GPU did."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.figures import Load
from bench.service import Counters, Service, environment

Report = dict[str, Any]


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How loads are run: by `bench.load`, or by another program with its command line and report."""

    loadgen: Path | None = None
    timeout: float = 240.0  # seconds for one load test
    scale_tokens: float = 1.0
    seed: int | None = None  # instead of the loads' own


def measure(service: Service, model: str, load: Load, options: LoadOptions) -> Report:
    """The report of `load` with the device's part in it; an `error` where there is no report."""
    before = _counters(service)
    report = run_load(command(f"http://127.0.0.1:{service.port}", model, load, options), options.timeout)
    after = _counters(service)
    if before and after and "seconds" in report:
        report |= device_shares(before, after, report["seconds"])
    return report


def device_shares(before: Counters, after: Counters, seconds: float) -> dict[str, float]:
    """`device_busy`: share of `seconds` that went to steps, whatever the rest went to.

    `device_idle`: time between steps of which the later had come to the worker already, as a share of that
    and of the time in steps; missing where there was no step.
    """
    idle = after.idle_seconds - before.idle_seconds
    busy = after.step_seconds - before.step_seconds
    shares = {"device_busy": busy / seconds}
    return shares | {"device_idle": idle / (idle + busy)} if busy else shares


def command(url: str, model: str, load: Load, options: LoadOptions) -> list[str]:
    """The command line of a load test."""
    program = [str(options.loadgen)] if options.loadgen else ["-m", "bench.load"]
    arrivals = ["--rate", str(load.rate)] if load.rate else ["--concurrency", str(load.concurrency)]
    seed = load.seed if options.seed is None else options.seed
    flags = ["--workload", load.workload, "--requests", str(load.requests), *arrivals, "--seed", str(seed)]
    scale = ["--scale-tokens", str(options.scale_tokens)] if options.scale_tokens != 1.0 else []
    return [sys.executable, *program, "--url", url, "--model", model, *flags, *scale]


def run_load(command: Sequence[str], timeout: float) -> Report:
    """Runs a load test and reads the last line it prints; `error` says why there is none."""
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment({}),
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            return {"error": f"not done after {timeout:g} s"}
        finally:
            # Its client processes are in its process group.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        return {"error": f"the load generator failed: {errors.strip()[-500:]}"}
    report: Report = json.loads(output.strip().splitlines()[-1])
    return report


def why_unusable(report: Mapping[str, Any]) -> str | None:
    """Why figures of `report` must not be compared, None when they may: every request got its full answer."""
    if error := report.get("error"):
        return str(error)
    if report.get("failed"):
        return f"{report['failed']} of {report['requests']} requests failed: {report.get('errors')}"
    if report.get("short_outputs"):
        return f"{report['short_outputs']} of {report['requests']} answers are too short"
    return None


def _counters(service: Service) -> Counters | None:
    try:
        return service.counters()
    except OSError:  # a worker that has died is started again, and does not answer meanwhile
        return None
