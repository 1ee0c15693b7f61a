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
from bench.chaos.clients import within
from bench.chaos.slow_redis import SlowRedis
from bench.chaos.wire import Wire
from bench.chaos.worker import ORDERS, Orders
from bench.fleet import free_port, redis_executable
from protos.scheduling_pb2 import DescribeRequest, Description, WorkerState
from protos.scheduling_pb2_grpc import SchedulerStub

WORKERS = ("worker-0", "worker-1", "worker-2")
FAR_WORKER = "worker-2"  # in a network namespace of its own, where that is allowed
GATEWAYS = ("gateway-0", "gateway-1")

_READY_S = 180.0
_IDLE_S = 20.0


@dataclass(frozen=True, slots=True)
class Layout:
    """How the cluster is made."""

    blocks: int = 1500  # in each worker's cache
    host_cache_gb: float = 0.0
    far: bool = False  # FAR_WORKER is behind a wire: needs to be root


class Cluster:
    """An asynchronous context manager: ready once entered, and gone after. Logs are in `folder`."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.layout = layout
        self.redis = SlowRedis(free_port())
        self.wire = Wire() if layout.far else None
        self.orders = {name: Orders(folder / f"{name}.orders") for name in WORKERS}
        self.rest = {name: f"http://127.0.0.1:{free_port()}" for name in GATEWAYS}
        self.rpc = {name: f"127.0.0.1:{free_port()}" for name in GATEWAYS}
        self.schedulers = {name: f"127.0.0.1:{free_port()}" for name in ("scheduler-0",)}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
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
            for name in ("redis", *WORKERS, *self.schedulers, *GATEWAYS):
                self.start(name)
            await self.full(_READY_S)
        except BaseException as error:
            await self._stack.aclose()
            if isinstance(error, TimeoutError):
                raise RuntimeError(f"not ready:\n{self.log()[-4000:]}") from None
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def log(self) -> str:
        """What all processes have printed, one after another."""
        return "\n".join(f"{path.name}:\n{path.read_text()}" for path in sorted(self._folder.glob("*.log")))

    # Processes

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
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def forget(self, name: str) -> None:
        """A process has ended by itself."""
        del self.processes[name]

    def signal(self, name: str, number: signal.Signals) -> None:
        """Sends a signal."""
        self.processes[name].send_signal(number)

    def _end(self) -> None:
        for name in list(self.processes):
            self.signal(name, signal.SIGCONT)
            self.kill(name)

    def _environment(self, name: str) -> Mapping[str, str]:
        return {ORDERS: str(self._folder / f"{name}.orders")} if name in WORKERS else {}

    def _command(self, name: str) -> list[str]:
        if name == "redis":
            return [redis_executable(), *self._redis_flags()]
        if name in WORKERS:
            inside = self.wire.inside if self.wire and name == FAR_WORKER else []
            return [*inside, sys.executable, "-m", "bench.chaos.worker", *self._worker_flags(name)]
        kind = name.split("-")[0]
        flags = self._scheduler_flags(name) if name in self.schedulers else self._gateway_flags(name)
        return [sys.executable, "-m", "batchyard.lifeline", kind, *flags]

    def _redis_flags(self) -> list[str]:
        port = str(self.redis.real_port)
        return ["--port", port, "--save", "", "--bind", "127.0.0.1", "--dir", str(self._folder)]

    def _worker_flags(self, name: str) -> list[str]:
        flags = ["--listen", self._workers[name], "--worker-id", name, "--device", "cpu"]
        flags += ["--num-gpu-blocks", str(self.layout.blocks), "--max-num-seqs", "128"]
        return [*flags, "--host-cache-gb", str(self.layout.host_cache_gb)]

    def _scheduler_flags(self, name: str) -> list[str]:
        flags = ["--scheduler-listen", self.schedulers[name], "--redis", self.redis.url]
        return [*flags, "--worker-addresses", ",".join(self._workers.values()), "--step-timeout", "2"]

    def _gateway_flags(self, name: str) -> list[str]:
        flags = ["--port", self.rest[name].rsplit(":", 1)[1], "--grpc-port", self.rpc[name].rsplit(":", 1)[1]]
        return [*flags, "--redis", self.redis.url, "--scheduler-address", ",".join(self.schedulers.values())]

    # What they say

    async def describe(self) -> Description:
        """The active scheduler's state. Raises grpc.aio.AioRpcError where there is none."""
        (address,) = self.schedulers.values()
        async with connect(address) as channel:
            return await SchedulerStub(channel).Describe(DescribeRequest(), timeout=2)

    async def full(self, seconds: float) -> None:
        """Returns at full capacity: all workers take steps, and all gateways are ready.

        Raises TimeoutError after so many seconds.
        """

        async def is_full() -> bool:
            state = await self.describe()
            working = sum(worker.connected for worker in state.workers)
            return working == len(WORKERS) and all([await self.ready(name) for name in GATEWAYS])

        await within(is_full, seconds)

    async def ready(self, gateway: str) -> bool:
        """Whether `gateway` says so."""
        timeout = aiohttp.ClientTimeout(total=2)
        with suppress(aiohttp.ClientError, TimeoutError):
            async with aiohttp.ClientSession(timeout=timeout) as session:
                async with session.get(f"{self.rest[gateway]}/ready") as reply:
                    return reply.status == 200
        return False

    async def unaccounted(self, seconds: float = _IDLE_S) -> str:
        """What does not account for itself when nothing runs any more; nothing is waited for longer than this."""
        state = Description()

        async def settled() -> bool:
            nonlocal state
            state = await self.describe()
            return not _leaks(state)

        with suppress(TimeoutError):
            await within(settled, seconds)
        return _leaks(state) if state.workers else "no scheduler answers"


def _leaks(state: Description) -> str:
    found = []
    if state.running or state.waiting:
        found.append(f"{state.running} requests run, {state.waiting} wait")
    for worker in state.workers:
        found += _worker_leaks(worker)
    return "; ".join(found)


def _worker_leaks(worker: WorkerState) -> list[str]:
    name = worker.worker_id or worker.address
    if not worker.connected:
        return [f"{name} is away"]
    if worker.rows or worker.held_blocks or worker.steps_in_flight:
        return [f"{name}: {worker.rows} rows, {worker.held_blocks} blocks, {worker.steps_in_flight} steps"]
    if worker.free_blocks + worker.cached_blocks != worker.num_blocks:
        return [f"{name}: {worker.free_blocks} free + {worker.cached_blocks} cached != {worker.num_blocks}"]
    return []
