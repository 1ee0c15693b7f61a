import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog

STANDIN = """
import asyncio, os, signal
from pathlib import Path

FOLDER = Path(os.environ["STANDIN_FOLDER"])

def note(*words):
    with open(FOLDER / "notes", "a") as file:
        file.write(" ".join(map(str, words)) + "\\n")

async def until_ended(name):
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    note("start", name, os.getpid())
    await ended.wait()
    note("end", name, os.getpid())
"""

GATEWAY = """
import asyncio, os, standin

async def run(settings):
    async def answer(reader, writer):
        await reader.readuntil(b"\\r\\n\\r\\n")
        status = "200 OK" if (standin.FOLDER / "loaded").exists() else "503 Service Unavailable"
        writer.write(f"HTTP/1.1 {status}\\r\\nContent-Length: 0\\r\\n\\r\\n".encode())
        writer.close()

    standin.note("key", settings.api_key, "metrics", "PROMETHEUS_MULTIPROC_DIR" in os.environ)
    address = dict(host=settings.host, port=settings.port, reuse_port=settings.share_port)
    async with await asyncio.start_server(answer, **address):
        await standin.until_ended("gateway")
"""

SCHEDULER = """
import standin

async def run(settings):
    standin.note("steps", settings.worker_addresses[0].removeprefix("unix:"), settings.scheduler_listen)
    await standin.until_ended("scheduler")
"""

WORKER = """
import os, standin, structlog
from batchyard.errors import ModelError

async def run(settings):
    fault = os.environ.get("STANDIN_FAULT")
    if fault == "user":
        raise ModelError("model.safetensors is truncated")
    if fault == "crash":
        raise RuntimeError("no such luck")
    log = structlog.get_logger()
    for done in range(0, 101, 5):
        log.info("loading_weights", done=done * 10**7, total=10**9)
    log.warning("little_memory")
    print("plain words", flush=True)
    standin.note("threads", settings.worker_id, os.environ.get("OMP_NUM_THREADS"))
    (standin.FOLDER / "loaded").touch()
    await standin.until_ended(settings.worker_id)
"""


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in ten seconds"
        time.sleep(0.01)


class Standins:
    """Processes that only start, say so and end, in the place of gateway, scheduler and worker."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: list[subprocess.Popen[str]] = []
        (folder / "standin.py").write_text(STANDIN)
        for package, code in (("gateway", GATEWAY), ("scheduler", SCHEDULER), ("gpu_worker", WORKER)):
            (folder / package).mkdir()
            (folder / package / "__init__.py").touch()
            (folder / package / "main.py").write_text(code)
        unset = {name: value for name, value in os.environ.items() if not name.startswith("BATCHYARD_")}
        self.env = unset | {"PYTHONPATH": str(folder), "STANDIN_FOLDER": str(folder), "TMPDIR": str(folder)}

    def serve(self, *argv: str, **env: str) -> "subprocess.Popen[str]":
        """`batchyard serve` on a free port."""
        process = subprocess.Popen(
            [sys.executable, "-m", "batchyard.cli", "serve", "--port", "0", "--grpc-port", "0", *argv],
            env=self.env | env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # as if it ran in a terminal of its own
            text=True,
        )
        self._started.append(process)
        return process

    def ready(self, serve: "subprocess.Popen[str]", processes: int = 3) -> str:
        """The line that `serve` prints when it is ready; by then so many processes wait for a signal."""
        assert serve.stdout is not None
        line = serve.stdout.readline()
        wait_for(lambda: len(self.notes("start")) == processes)
        return line

    def close(self) -> None:
        """Ends what a test that failed has left."""
        for process in self._started:
            process.kill()
            process.communicate()

    def notes(self, first: str) -> list[list[str]]:
        """What the stand-ins wrote down that begins with `first`, without that word."""
        path = self.folder / "notes"
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return [words[1:] for words in lines if words and words[0] == first]


@pytest.fixture
def standins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standins]:
    standins = Standins(tmp_path_factory.mktemp("s"))  # a short name: Unix sockets are to go below it
    yield standins
    standins.close()


@pytest.fixture
def eventually() -> Callable[[Callable[[], object]], None]:
    """Waits until a condition holds; fails after ten seconds."""
    return wait_for


@pytest.fixture
def own_logging() -> Iterator[None]:
    """Takes back what `setup_logging` does to the process."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], level = before
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
