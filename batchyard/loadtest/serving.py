"""`batchyard serve` for a measurement: real processes on free ports, which end with it however that ends."""

import asyncio
import contextlib
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import IO

from batchyard.errors import BadTarget
from batchyard.loadtest.client import Client, parse_url

_END_S = 20.0
_POLL_S = 0.1
_WORDS = 300  # characters of a server's last words that an error repeats


@dataclass(frozen=True, slots=True)
class Served:
    """A service that is ready. `pid` is that of `batchyard serve`, the parent of all its processes."""

    url: str
    pid: int
    worker_metrics: tuple[int, ...]  # ports


@contextlib.asynccontextmanager
async def serving(flags: Sequence[str], workers: int, ready_s: float) -> AsyncIterator[Served]:
    """Runs it with `flags`, until the block ends.

    Raises BadTarget, with its last words, if it is not ready.
    """
    port, metrics = free_port(), free_ports_in_a_row(1 + workers)
    wired = ["--port", str(port), "--grpc-port", "0", "--metrics-port", str(metrics)]
    # Its processes end when their standard input does, so they cannot outlive us.
    command = [sys.executable, "-P", "-m", "batchyard.lifeline", "serve", *flags, *wired]
    with tempfile.TemporaryFile() as log:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
        )
        try:
            url = f"http://127.0.0.1:{port}"
            await _ready(process, url, log, ready_s)
            yield Served(url, process.pid, tuple(metrics + 1 + number for number in range(workers)))
        finally:
            await _end(process)


async def _ready(process: asyncio.subprocess.Process, url: str, log: IO[bytes], seconds: float) -> None:
    client = Client(parse_url(url), None, timeout_s=5)
    try:
        async with asyncio.timeout(seconds):
            while (await client.get("/ready")).status != 200:
                if process.returncode is not None:
                    raise BadTarget(f"batchyard serve has ended: {_last_words(log)}")
                await asyncio.sleep(_POLL_S)
    except TimeoutError as error:
        raise BadTarget(f"batchyard serve was not ready after {seconds:.0f} s: {_last_words(log)}") from error
    finally:
        client.close()


async def _end(process: asyncio.subprocess.Process) -> None:
    """In order, as it ends on SIGTERM; a service that does not is killed, and its processes see that."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(_END_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def _last_words(log: IO[bytes]) -> str:
    log.seek(max(0, log.seek(0, os.SEEK_END) - 10_000))
    lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][-_WORDS:] if lines else "it said nothing"


def free_port() -> int:
    """One that nobody uses now."""
    return free_ports_in_a_row(1)


def free_ports_in_a_row(count: int) -> int:
    """The first of so many that follow each other."""
    while True:
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError, OverflowError):
            first = stack.enter_context(socket.socket())
            first.bind(("127.0.0.1", 0))
            start: int = first.getsockname()[1]
            for number in range(1, count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", start + number))
            return start
