"""The processes: three CPU workers, schedulers, two gateways and a Redis, to be killed and started again."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import grpc.aio

from batchyard.rpc import connect
from bench.chaos.accounts import unaccounted
from bench.chaos.clients import within
from bench.chaos.errors import NobodyActive
from bench.chaos.orders import Orders
from bench.chaos.process import ORDERS, TASKS
from bench.chaos.slow_redis import SlowRedis
from bench.chaos.wire import Wire
from bench.fleet import free_port, redis_executable
from protos.scheduling_pb2 import DescribeRequest, Description
from protos.scheduling_pb2_grpc import SchedulerStub

WORKERS = ("worker-0", "worker-1", "worker-2")
FAR_WORKER = "worker-2"  # in a network namespace of its own, where there is a wire
SCHEDULERS = ("scheduler-0", "scheduler-1")  # one is active, and the other its standby
GATEWAYS = ("gateway-0", "gateway-1")

_READY_S = 180.0
_IDLE_S = 20.0


@dataclass(frozen=True, slots=True)
class Layout:
    """How the cluster is made."""

    tight: bool = False  # memory for the streams and little more, and host memory below it
    far: bool = False  # FAR_WORKER is behind a wire: only root may have one


class Cluster:
    """An asynchronous context manager: ready once entered, and gone after. Logs are in `folder`."""

    def __init__(self, folder: Path, layout: Layout, streams: int) -> None:
        """For so many streams at a time. Entering raises RuntimeError where it does not become ready."""
        self._memory = _tight_memory(streams) if layout.tight else ["--num-gpu-blocks", "1500"]
        self.redis = SlowRedis(free_port())
        self.wire = Wire() if layout.far else None
        self.orders = {name: Orders(folder / f"{name}.orders") for name in WORKERS}
        self.rpc = {name: f"127.0.0.1:{free_port()}" for name in GATEWAYS}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._rest = {name: f"http://127.0.0.1:{free_port()}" for name in GATEWAYS}
        self._scheduler_ports = {name: free_port() for name in SCHEDULERS}
        self._workers = {name: f"127.0.0.1:{free_port()}" for name in WORKERS}
        if self.wire:
            self._workers[FAR_WORKER] = f"{self.wire.far_host}:{free_port()}"
        self._folder = folder
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> "Cluster":
        try:
            await self._stack.enter_async_context(self.redis)
            if self.wire:
                self._stack.enter_context(self.wire)
            self._stack.callback(self._end)
            for name in ("redis", *WORKERS, *SCHEDULERS, *GATEWAYS):
                self.start(name)
            await self.full(_READY_S)
        except BaseException as error:
            words = self.log()[-4000:]
            await self._stack.aclose()
            if isinstance(error, TimeoutError):
                raise RuntimeError(f"not ready:\n{words}") from None
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def log(self) -> str:
        """What all processes have printed, one after another."""
        return "\n".join(f"{path.name}:\n{path.read_text()}" for path in sorted(self._folder.glob("*.log")))

    def start(self, name: str) -> None:
        """Starts a process. It ends with us, however we end."""
        with (self._folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                self._command(name),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1", **self._environment(name)},
            )

    def kill(self, name: str) -> None:
        """SIGKILL."""
        self.processes[name].kill()
        self.forget(name)

    def forget(self, name: str) -> int:
        """Waits for the end of a process that ends, and returns its exit code."""
        process = self.processes.pop(name)
        if process.stdin:
            process.stdin.close()
        return process.wait()

    def signal(self, name: str, number: signal.Signals) -> None:
        """Sends a signal."""
        self.processes[name].send_signal(number)

    def tasks_file(self, name: str) -> Path:
        """Where a process writes its number of asyncio tasks at SIGUSR1."""
        return self._folder / f"{name}.tasks"

    async def describe(self) -> tuple[str, Description]:
        """The active scheduler's name and state. Raises NobodyActive."""
        found = await asyncio.gather(*map(self._describe, SCHEDULERS))
        states = {name: state for name, state in zip(SCHEDULERS, found, strict=True) if state}
        active = max(states, key=lambda name: states[name].fence, default=None)
        if active is None or not states[active].fence:
            raise NobodyActive
        return active, states[active]

    async def full(self, seconds: float) -> None:
        """Returns at full capacity: all workers take steps, a scheduler has its standby, gateways are ready.

        Raises TimeoutError after so many seconds.
        """

        async def is_full() -> bool:
            states = await asyncio.gather(*map(self._describe, SCHEDULERS))
            active = [state for state in states if state and state.fence]
            if not all(states) or len(active) != 1:
                return False
            working = sum(worker.connected for worker in active[0].workers)
            return working == len(WORKERS) and all([await self._ready(name) for name in GATEWAYS])

        await within(is_full, seconds)

    async def unaccounted(self) -> str:
        """What does not account for itself when nothing runs any more; empty where all does."""
        state = Description()

        async def settled() -> bool:
            nonlocal state
            _, state = await self.describe()
            return not unaccounted(state)

        with suppress(TimeoutError):
            await within(settled, _IDLE_S)
        return unaccounted(state) if state.workers else "no scheduler answers"

    async def _describe(self, scheduler: str) -> Description | None:
        async with connect(f"127.0.0.1:{self._scheduler_ports[scheduler]}") as channel:
            with suppress(grpc.aio.AioRpcError):
                return await SchedulerStub(channel).Describe(DescribeRequest(), timeout=2)
        return None

    async def _ready(self, gateway: str) -> bool:
        timeout = aiohttp.ClientTimeout(total=2)
        with suppress(aiohttp.ClientError, TimeoutError):
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.get(f"{self._rest[gateway]}/ready") as reply,
            ):
                return reply.status == 200
        return False

    def _end(self) -> None:
        for name in list(self.processes):
            self.kill(name)

    def _environment(self, name: str) -> Mapping[str, str]:
        orders = {ORDERS: str(self._folder / f"{name}.orders")} if name in WORKERS else {}
        return {TASKS: str(self.tasks_file(name)), **orders}

    def _command(self, name: str) -> list[str]:
        if name == "redis":
            return [redis_executable(), *self._redis_flags()]
        kind = name.split("-")[0]
        inside = self.wire.inside if self.wire and name == FAR_WORKER else []
        flags = {
            "worker": self._worker_flags,
            "scheduler": self._scheduler_flags,
            "gateway": self._gateway_flags,
        }
        return [*inside, sys.executable, "-m", "bench.chaos.process", kind, *flags[kind](name)]

    def _redis_flags(self) -> list[str]:
        port = str(self.redis.real_port)
        return ["--port", port, "--save", "", "--bind", "127.0.0.1", "--dir", str(self._folder)]

    def _worker_flags(self, name: str) -> list[str]:
        flags = ["--listen", self._workers[name], "--worker-id", name, "--device", "cpu"]
        flags += ["--max-model-len", "512", "--max-num-batched-tokens", "512"]
        near_host = self.wire.near_host if self.wire and name == FAR_WORKER else "127.0.0.1"
        return [*flags, *self._memory, "--scheduler-address", self._schedulers_at(near_host)]

    def _scheduler_flags(self, name: str) -> list[str]:
        host = "0.0.0.0" if self.wire else "127.0.0.1"  # the far worker's way here is another one
        flags = ["--scheduler-listen", f"{host}:{self._scheduler_ports[name]}"]
        return [*flags, "--redis", self.redis.url]

    def _gateway_flags(self, name: str) -> list[str]:
        flags = [
            "--port",
            self._rest[name].rsplit(":", 1)[1],
            "--grpc-port",
            self.rpc[name].rsplit(":", 1)[1],
        ]
        schedulers = self._schedulers_at("127.0.0.1")
        return [*flags, "--redis", self.redis.url, "--scheduler-address", schedulers]

    def _schedulers_at(self, host: str) -> str:
        return ",".join(f"{host}:{port}" for port in self._scheduler_ports.values())


def _tight_memory(streams: int) -> list[str]:
    """Flags of a worker. A stream's tokens fill 18 blocks on average, and there are three workers."""
    return ["--num-gpu-blocks", str(max(64, 6 * streams)), "--host-cache-gb", "0.1"]
