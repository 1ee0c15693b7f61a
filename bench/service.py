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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import grpc

from protos.inference_pb2 import GenerateRequest, TokenIds
from protos.inference_pb2_grpc import InferenceStub

_READY_S, _END_S = 180.0, 20.0


@dataclass(frozen=True, slots=True)
class Counters:
    """What scheduler and worker have counted since they started."""

    steps: float
    step_seconds: float  # the worker's: model and sampling
    step_tokens: float  # computed, of prompts and answers


@dataclass(frozen=True, slots=True)
class Service:
    """Where the processes can be reached."""

    port: int
    grpc_port: int
    metrics_port: int  # the scheduler's; the worker's is the next one

    def counters(self) -> Counters:
        """Read from /metrics of the scheduler and the worker."""
        scheduler, worker = (_metrics(self.metrics_port + n) for n in range(2))
        return Counters(
            scheduler["batchyard_steps_total"],
            worker["batchyard_worker_step_seconds_sum"],
            worker["batchyard_worker_tokens_total"],
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
def serving(arguments: Sequence[str], threads: int) -> Iterator[Service]:
    """Runs `batchyard serve` with `arguments`; its worker computes with so many threads."""
    service = Service(*_free_ports())
    ports = ["--port", service.port, "--grpc-port", service.grpc_port, "--metrics-port", service.metrics_port]
    # The processes end when their standard input does, so they cannot outlive us however we end.
    command = [sys.executable, "-m", "batchyard.lifeline", "serve", *arguments, *map(str, ports)]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            start_new_session=True,
        )
        try:
            if not _ready(process, service.port):
                log.seek(0)
                raise RuntimeError(f"batchyard serve did not become ready:\n{log.read()}")
            yield service
        finally:
            _end(process)


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
