"""Gateway, schedulers and worker as real processes, each started as an operator would."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from batchyard.rpc import connect
from protos.scheduling_pb2 import DescribeRequest, Description
from protos.scheduling_pb2_grpc import SchedulerStub


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Stack:
    """Gateway, schedulers, and `workers` that register with them, over Unix sockets in
    `folder`, or over TCP with `tcp`.

    The workers are called `worker`, `worker-1`, `worker-2` and so on, the schedulers `scheduler`, `standby-1`
    and so on.

    With `context` REST is asked over TLS; `env` are more variables for all of them.
    """

    def __init__(
        self,
        folder: Path,
        model="demo",
        worker=(),
        scheduler=(),
        gateway=(),
        env=None,
        context=None,
        tcp=False,
        workers=1,
        standbys=0,
    ) -> None:
        self.base_url = f"{'https' if context else 'http'}://127.0.0.1:{free_port()}"
        self._context = context
        self._env = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
        self.grpc_address = f"127.0.0.1:{free_port()}"
        self.workers = ["worker", *(f"worker-{n}" for n in range(1, workers))]
        self.schedulers = ["scheduler", *(f"standby-{n}" for n in range(1, standbys + 1))]
        self.addresses = {
            name: f"127.0.0.1:{free_port()}" if tcp else f"unix:{folder}/{name}.sock"
            for name in (*self.workers, *self.schedulers)
        }
        self.scheduler_address = ",".join(self.addresses[name] for name in self.schedulers)
        self._log = folder / "log.txt"
        self._commands = {
            **{name: self._worker(model, name, worker) for name in self.workers},
            **{name: ["--scheduler-listen", self.addresses[name], *scheduler] for name in self.schedulers},
            "gateway": [
                "--model",
                model,
                "--scheduler-address",
                self.scheduler_address,
                "--port",
                self.base_url.rsplit(":", 1)[1],
                "--grpc-port",
                self.grpc_address.rsplit(":", 1)[1],
                *gateway,
            ],
        }
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def _worker(self, model: str, name: str, more) -> list[str]:
        addresses = ["--listen", self.addresses[name], "--scheduler-address", self.scheduler_address]
        return ["--model", model, "--worker-id", name, *addresses, "--device", "cpu", *more]

    def start(self, name: str) -> None:
        with self._log.open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", "batchyard.cli", _command(name), *self._commands[name]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._env,
            )

    def kill(self, name: str, number: int = signal.SIGKILL) -> int:
        process = self.processes.pop(name)
        process.send_signal(number)
        return process.wait(timeout=30)

    def signal(self, name: str, number: int) -> None:
        self.processes[name].send_signal(number)

    def wait_ready(self, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            dead = [name for name, process in self.processes.items() if process.poll() is not None]
            if dead:
                break
            url = f"{self.base_url}/ready"
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5, context=self._context):
                return
            time.sleep(0.05)
        raise AssertionError(f"not ready; the log says:\n{self._log.read_text()[-4000:]}")

    def __enter__(self) -> "Stack":
        for name in self._commands:
            self.start(name)
        try:
            self.wait_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self.processes)[::-1]:
            self.kill(name, signal.SIGTERM)

    @property
    def log(self) -> str:
        return self._log.read_text()

    async def describe(self, name: str = "scheduler") -> Description:
        async with connect(self.addresses[name]) as channel:
            return await SchedulerStub(channel).Describe(DescribeRequest(), wait_for_ready=True)

    async def active(self, seconds: float = 20) -> str:
        """The name of the active scheduler, as soon as one says that it is."""
        async with asyncio.timeout(seconds):
            while True:
                for name in self.schedulers:
                    if name in self.processes and (await self.describe(name)).fence:
                        return name
                await asyncio.sleep(0.01)

    async def idle(self, seconds: float = 20) -> Description:
        """Waits until nothing runs, and checks that nothing has leaked."""
        name = await self.active()
        async with asyncio.timeout(seconds):
            while True:
                state = await self.describe(name)
                busy = any(worker.rows or worker.steps_in_flight for worker in state.workers)
                if not (state.running or state.waiting or busy):
                    break
                await asyncio.sleep(0.01)
        for worker in state.workers:
            assert worker.held_blocks == 0
            if worker.connected:
                assert worker.free_blocks + worker.cached_blocks == worker.num_blocks
        return state


def _command(name: str) -> str:
    role = name.partition("-")[0]
    return "scheduler" if role == "standby" else role
