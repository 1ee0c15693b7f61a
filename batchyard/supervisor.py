"""`batchyard serve`: starts the processes, says when they are ready, restarts what dies, ends all."""

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from pathlib import Path

import structlog
from prometheus_client.multiprocess import mark_process_dead

from batchyard.config import ServeSettings
from batchyard.console import Console
from batchyard.errors import UserError
from batchyard.hub import resolve_model
from batchyard.plan import Role, plan, this_machine
from batchyard.ports import check_port
from batchyard.process import Process, lifeline
from batchyard.readiness import answers_ready, reachable, ready_line
from batchyard.tls import api_tls

log = structlog.get_logger()

END_BY_S: dict[Role, float] = {"gateway": 6.0, "scheduler": 8.0, "worker": 10.0}
"""In this order processes are asked to end; so many seconds after the first was asked, we go on."""

_POLL_S = 0.1
_STEADY_S = 60.0


def run(settings: ServeSettings) -> Coroutine[None, None, int]:
    """Checks what can be checked at once, and gives the coroutine that serves. Raises UserError."""
    return serve(prepare(settings))


def prepare(settings: ServeSettings) -> ServeSettings:
    """`settings` with the model on this machine, certificates that are good and ports that are free.

    May download; raises UserError.

    It blocks, so that Ctrl-C ends a download; nothing runs yet that it could keep waiting.
    """
    api_tls(settings)
    port = check_port(settings.host, settings.port, "--port")
    if settings.grpc_port:
        check_port(settings.host, settings.grpc_port, "--grpc-port")
    return settings.model_copy(
        update={
            "port": port,
            "model": str(resolve_model(settings.model)),
            "served_model_name": settings.served_model_name or settings.model,
        }
    )


async def serve(settings: ServeSettings) -> int:
    """Serves until SIGINT or SIGTERM, and returns 0. `settings` come from `prepare`.

    When a process dies before all are ready, the others are ended and its exit code is returned. Raises
    UserError, with the words of that process, when it died of one.
    """
    console = Console(sys.stderr, settings)
    tls = api_tls(settings)
    context = tls.loopback_context() if tls else None
    with run_directory() as run_dir, lifeline() as line:
        specs = plan(settings, run_dir, this_machine(os.environ), os.environ)
        console.status(f"Starting {', '.join(spec.name for spec in specs)}")
        supervisor = Supervisor(
            [Process(spec, line, console.child_line) for spec in specs],
            console,
            is_ready=lambda: answers_ready(reachable(settings.host), settings.port, context),
            announcement=ready_line(settings),
        )
        with _signals(supervisor.stop):
            return await supervisor.run()


class Supervisor:
    """Runs `processes` until `stop`. Prints `announcement` once, when `is_ready` has said so."""

    def __init__(
        self,
        processes: Sequence[Process],
        console: Console,
        is_ready: Callable[[], Awaitable[bool]],
        announcement: str,
    ) -> None:
        self._processes = processes
        self._console = console
        self._is_ready = is_ready
        self._announcement = announcement
        self._ready = False
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Has everything ended in order; called again, at once."""
        if self._stopping.is_set():
            for process in self._processes:
                process.kill()
        else:
            self._console.status("Ending (Ctrl-C again ends at once)")
            self._stopping.set()

    async def run(self) -> int:
        """See `serve`."""
        keepers = {process: asyncio.create_task(self._keep(process)) for process in self._processes}
        ready, stopped = asyncio.create_task(self._until_ready()), asyncio.create_task(self._until_stopped())
        try:
            first = await _first_of(stopped, *keepers.values(), ready)
            if first is ready:
                ready.result()
                self._ready = True
                self._console.clear()
                print(self._announcement, flush=True)
                first = await _first_of(stopped, *keepers.values())
            return first.result()
        finally:
            self._stopping.set()
            await self._end(keepers)
            ready.cancel()
            await asyncio.gather(ready, stopped, *keepers.values(), return_exceptions=True)
            self._console.clear()

    async def _keep(self, process: Process) -> int:
        """Runs `process` again whenever it ends. Returns an exit code when that must end everything."""
        failures = 0
        while True:
            started = time.monotonic()
            code = await process.run()
            _forget_metrics(process)
            if self._stopping.is_set():
                return 0
            if not self._ready:
                return self._died_early(process, code)
            failures = 1 if time.monotonic() - started > _STEADY_S else failures + 1
            delay = restart_delay(failures)
            name, why = process.spec.name, process.user_error
            log.error("process_ended", name=name, code=code, why=why, restart_in_s=delay)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay)
                return 0

    def _died_early(self, process: Process, code: int) -> int:
        if process.user_error:
            raise UserError(process.user_error)
        self._console.clear()
        log.error("process_ended_before_ready", name=process.spec.name, code=code)
        return 128 - code if code < 0 else code or 1

    async def _end(self, keepers: dict[Process, asyncio.Task[int]]) -> None:
        start = time.monotonic()
        for role, by in END_BY_S.items():
            mine = [process for process in keepers if process.spec.role == role]
            for process in mine:
                process.end()
            if mine:
                await asyncio.wait(
                    [keepers[process] for process in mine], timeout=max(0.0, start + by - time.monotonic())
                )
        for process in keepers:
            process.kill()

    async def _until_ready(self) -> int:
        while not await self._is_ready():  # noqa: ASYNC110 - it is another process that gets ready
            await asyncio.sleep(_POLL_S)
        return 0

    async def _until_stopped(self) -> int:
        await self._stopping.wait()
        return 0


def restart_delay(failures: int) -> float:
    """Seconds to wait after the n-th failure in a row: 0.1 (an accident), 1, 2, 4, 8, 16, then 30."""
    return 0.1 if failures == 1 else min(30.0, 2.0 ** min(failures - 2, 5))


@contextlib.contextmanager
def run_directory() -> Iterator[Path]:
    """A new folder for nobody else, removed at the end."""
    temp = tempfile.gettempdir()
    # The path of a Unix socket has at most 107 bytes, of which the names below `base` take up to 36.
    base = temp if len(os.fsencode(temp)) <= 70 else "/tmp"
    with tempfile.TemporaryDirectory(prefix="batchyard-", dir=base, ignore_cleanup_errors=True) as path:
        yield Path(path)


@contextlib.contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    # A closed terminal ends us too, but for `nohup`.
    hangup = [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL else []
    numbers = [signal.SIGINT, signal.SIGTERM, *hangup]
    for number in numbers:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


async def _first_of(*tasks: asyncio.Task[int]) -> asyncio.Task[int]:
    """The first of `tasks` that is done; of those done together, the one named first."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    return next(task for task in tasks if task in done)


def _forget_metrics(process: Process) -> None:
    """Without this, what a gateway that is gone had in flight would be counted for ever."""
    folder = process.spec.env.get("PROMETHEUS_MULTIPROC_DIR")
    if folder and process.spec.role == "gateway":
        mark_process_dead(process.pid, folder)  # type: ignore[no-untyped-call]
