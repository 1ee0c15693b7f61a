"""`batchyard serve` as a benchmark runs it: real processes on free ports, ended with the benchmark."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import grpc

from protos.inference_pb2 import GenerateRequest, TokenIds
from protos.inference_pb2_grpc import InferenceStub

_READY_S, _END_S = 180.0, 20.0
_ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Counters:
    """What scheduler and worker have counted since they started."""

    steps: float
    step_seconds: float  # the worker's: model and sampling
    step_tokens: float  # computed, of prompts and answers
    idle_seconds: float  # of the device, with the next step at the worker already


@dataclass(frozen=True, slots=True)
class Service:
    """Where the processes can be reached."""

    port: int
    grpc_port: int
    metrics_port: int  # the scheduler's; the worker's is the next one
    ready_s: float  # seconds from start to ready
    pid: int  # of `batchyard serve`, whose children the others are

    def counters(self) -> Counters:
        """Read from /metrics of the scheduler and the worker."""
        scheduler, worker = (_metrics(self.metrics_port + n) for n in range(2))
        return Counters(
            scheduler["batchyard_steps_total"],
            worker["batchyard_worker_step_seconds_sum"],
            worker["batchyard_worker_tokens_total"],
            worker["batchyard_worker_device_idle_seconds_total"],
        )

    def token_ids(self, model: str, prompts: Sequence[Sequence[int]], output_tokens: int) -> list[list[int]]:
        """Greedy answers to all prompts at once as token ids, which only the gRPC API tells."""
        with grpc.insecure_channel(f"127.0.0.1:{self.grpc_port}") as channel:
            stub = InferenceStub(channel)
            streams = [
                stub.Generate(
                    GenerateRequest(
                        model=model,
                        token_ids=TokenIds(ids=prompt),
                        max_tokens=output_tokens,
                        temperature=0,
                        ignore_eos=True,
                    ),
                    timeout=_READY_S,
                )
                for prompt in prompts
            ]
            return [[token for piece in stream for token in piece.token_ids] for stream in streams]


@contextlib.contextmanager
def serving(
    arguments: Sequence[str], environ: Mapping[str, str] | None = None, log: Path | None = None
) -> Iterator[Service]:
    """Runs `batchyard serve` with `arguments` on the packages beside this one; ended with the block.

    `environ` is added to our environment; what the processes print goes to `log`. Raises RuntimeError, with
    what they printed, when they do not become ready.
    """
    ports = rest, rpc, metrics = _free_ports()
    flags = ["--port", str(rest), "--grpc-port", str(rpc), "--metrics-port", str(metrics)]
    # The processes end when their standard input does, so they cannot outlive us however we end.
    command = [sys.executable, "-P", "-m", "batchyard.lifeline", "serve", *arguments, *flags]
    with open(log, "w+") if log else tempfile.TemporaryFile("w+") as output:
        started = time.monotonic()
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=environment(environ or {}),
            start_new_session=True,
        )
        try:
            if not _ready(process, rest):
                raise RuntimeError(f"batchyard serve did not become ready:\n{_printed(output)}")
            yield Service(*ports, time.monotonic() - started, process.pid)
        finally:
            _end(process)


def environment(more: Mapping[str, str]) -> dict[str, str]:
    """Ours with `more`, in which Python finds the packages beside this one first."""
    environ = {**os.environ, **more}
    paths = [path for path in (environ.get("PYTHONPATH"), str(_ROOT)) if path]
    return {**environ, "PYTHONPATH": os.pathsep.join(paths)}


def _printed(output: IO[str]) -> str:
    output.seek(0)
    return output.read()


def _ready(process: subprocess.Popen[bytes], port: int) -> bool:
    deadline = time.monotonic() + _READY_S
    while process.poll() is None and time.monotonic() < deadline:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5),
        ):
            return True
        time.sleep(0.1)
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    # `batchyard serve` ends its own; were it killed, they would see their lifelines cut.
    process.terminate()
    killer = threading.Timer(_END_S, process.kill)
    killer.start()
    process.wait()
    killer.cancel()
    if process.stdin:
        process.stdin.close()


def _free_ports() -> tuple[int, int, int]:
    """Ports for REST and gRPC, and the first of two that follow each other."""
    while True:
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            sockets = [stack.enter_context(socket.socket()) for _ in range(4)]
            for probe in sockets[:3]:
                probe.bind(("127.0.0.1", 0))
            rest, rpc, metrics = (probe.getsockname()[1] for probe in sockets[:3])
            sockets[3].bind(("127.0.0.1", metrics + 1))
            return rest, rpc, metrics


def _metrics(port: int) -> dict[str, float]:
    """Prometheus samples by name; there is one worker, so the labels do not matter here."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    samples = [re.match(r"(\w+)(?:\{.*\})? (\S+)$", line) for line in lines if not line.startswith("#")]
    return {sample[1]: float(sample[2]) for sample in samples if sample}
