import asyncio
import contextlib
import json
import os
import signal
import socket
import stat
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from batchyard.config import ServeSettings
from batchyard.console import Console
from batchyard.errors import UserError
from batchyard.plan import ProcessSpec
from batchyard.process import Process, lifeline
from batchyard.supervisor import Supervisor, prepare, restart_delay, run_directory


def test_restart_delay():
    assert [restart_delay(n) for n in (1, 2, 3, 4, 5, 6, 7, 10_000)] == [0.1, 1, 2, 4, 8, 16, 30, 30]


def test_run_directory(tmp_path, monkeypatch):
    with run_directory() as path:
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert len(str(path / "worker-1000.sock")) < 108
        (path / "scheduler.sock").touch()
    assert not path.exists()

    long = tmp_path / ("x" * 70)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with run_directory() as path:
        assert path.parent == Path("/tmp")


def test_prepare_keeps_the_name_of_the_model(tmp_path):
    settings = prepare(ServeSettings(port=0, grpc_port=0, model=str(tmp_path)))
    assert settings.port > 0
    assert (settings.model, settings.served_model_name) == (str(tmp_path.resolve()), str(tmp_path))
    named = prepare(ServeSettings(port=0, grpc_port=0, model=str(tmp_path), served_model_name="m"))
    assert named.served_model_name == "m"


class Cast:
    """A supervisor over small real processes that write notes."""

    PRELUDE = """
import os, signal, sys
def note(*words):
    with open("notes", "a") as file: print(*words, file=file)
def ended(*_):
    note("end", NAME)
    sys.exit()
signal.signal(signal.SIGTERM, ended)
"""
    WAIT = 'note("start", NAME)\nwhile True: signal.pause()'

    def __init__(self, folder: Path, lifeline: int) -> None:
        self._notes = folder / "notes"
        self._lifeline = lifeline

    def supervisor(self, is_ready: Callable[[], bool], **codes: str) -> Supervisor:
        """Over one process for each role in `codes`, which run those lines of Python."""
        console = Console(sys.stderr, ServeSettings())
        specs = [self._spec(role, code) for role, code in codes.items()]

        async def ready() -> bool:
            return is_ready()

        processes = [Process(spec, self._lifeline, console.child_line) for spec in specs]
        return Supervisor(processes, console, ready, "all is ready")

    def notes(self) -> list[str]:
        return self._notes.read_text().splitlines() if self._notes.exists() else []

    def _spec(self, role: str, code: str) -> ProcessSpec:
        lines = f"import os\nos.chdir({str(self._notes.parent)!r})\nNAME = {role!r}\n{self.PRELUDE}\n{code}"
        assert role in ("gateway", "scheduler", "worker")
        return ProcessSpec(role, role, (sys.executable, "-S", "-c", lines), os.environ)


class TestSupervisor:
    @pytest.fixture
    def cast(self, tmp_path: Path) -> Iterator[Cast]:
        with lifeline() as line:
            yield Cast(tmp_path, line)

    async def test_ends_in_order(self, cast, capsys):
        everything = {"worker": cast.WAIT, "scheduler": cast.WAIT, "gateway": cast.WAIT}
        supervisor = cast.supervisor(lambda: len(cast.notes()) == 3, **everything)
        async with running(supervisor):
            await until(lambda: "all is ready\n" in capsys.readouterr().out)
        assert cast.notes()[3:] == ["end gateway", "end scheduler", "end worker"]

    async def test_restarts(self, cast, own_logging):
        code = (
            "note('start')\n"
            "if open('notes').read().count('start') > 1: signal.pause()\n"
            "while not os.path.exists('ready'): pass\n"
            "sys.exit(3)"
        )
        supervisor = cast.supervisor(lambda: True, worker=code)
        async with running(supervisor):
            await until(lambda: cast.notes() == ["start"])
            (cast._notes.parent / "ready").touch()
            await until(lambda: cast.notes() == ["start", "start"])

    async def test_ends_while_it_waits_to_restart(self, cast, capsys, own_logging):
        supervisor = cast.supervisor(lambda: bool(cast.notes()), worker=cast.WAIT)
        async with running(supervisor):
            await until(lambda: "all is ready" in capsys.readouterr().out)
            (process,) = supervisor._processes
            process.kill()
            await until(lambda: "process_ended" in "".join(capsys.readouterr()))

    @pytest.mark.parametrize(
        ("code", "expected"), [("sys.exit(3)", 3), ("sys.exit()", 1), ("os.abort()", 134)]
    )
    async def test_early_death_ends_all(self, cast, code, expected, own_logging):
        supervisor = cast.supervisor(lambda: False, worker=code, scheduler=cast.WAIT, gateway=cast.WAIT)
        assert await supervisor.run() == expected

    async def test_users_error_is_passed_on(self, cast):
        code = "print('batchyard: the folder is empty', file=sys.stderr); sys.exit(2)"
        with pytest.raises(UserError, match=r"^the folder is empty$"):
            await cast.supervisor(lambda: False, worker=code, gateway=cast.WAIT).run()

    async def test_second_stop_kills(self, cast):
        stubborn = f"signal.signal(signal.SIGTERM, lambda *_: note('no'))\n{cast.WAIT}"
        supervisor = cast.supervisor(lambda: False, worker=stubborn)
        async with running(supervisor):
            await until(lambda: "start worker" in cast.notes())
            supervisor.stop()
            await until(lambda: "no" in cast.notes())

    async def test_an_error_of_ours_ends_all(self, cast):
        with pytest.raises(ZeroDivisionError):
            await cast.supervisor(lambda: 1 // 0 > 0, worker=cast.WAIT).run()


@contextlib.asynccontextmanager
async def running(supervisor: Supervisor) -> AsyncIterator[None]:
    """Runs `supervisor`, and stops it in the end."""
    task = asyncio.create_task(supervisor.run())
    try:
        yield
    finally:
        supervisor.stop()
        async with asyncio.timeout(10):
            assert await task == 0


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


class TestServe:
    """The real command, its processes stand-ins."""

    def test_serves_until_ctrl_c(self, standins):
        serve = standins.serve("--model", str(standins.folder), "--served-model-name", "m")
        line = standins.ready(serve)
        assert line.startswith("Batchyard is ready: http://127.0.0.1:")
        assert urllib.request.urlopen(f"{line.split()[3]}/ready", timeout=5).status == 200
        assert len(list(standins.folder.glob("batchyard-*"))) == 1
        # To the whole group, as a terminal does: it must reach the supervisor alone.
        os.killpg(serve.pid, signal.SIGINT)
        out, err = serve.communicate(timeout=10)
        assert (serve.returncode, out) == (0, "")
        assert [name for name, _ in standins.notes("end")] == ["gateway", "scheduler", "worker-0"]
        assert list(standins.folder.glob("batchyard-*")) == []
        assert "Traceback" not in err

    def test_several_of_each_on_a_console(self, standins):
        argv = ["--workers", "2", "--gateways", "2", "--device", "cpu", "--api-key", "hush"]
        serve = standins.serve(*argv, "--log-format", "console")
        line = standins.ready(serve, processes=5)
        assert '-H "Authorization: Bearer $BATCHYARD_API_KEY"' in line
        serve.terminate()
        _, err = serve.communicate(timeout=10)
        assert serve.returncode == 0
        assert standins.notes("key") == [["hush", "metrics", "True"]] * 2
        assert "hush" not in line + err
        lines = err.splitlines()
        assert lines[0] == "Starting worker-0, worker-1, scheduler, gateway-0, gateway-1"
        assert len([line for line in lines if line.startswith("Loading weights: ")]) == 11
        warnings = [line for line in lines if "little_memory" in line]
        assert sorted(line.split("process=")[1] for line in warnings) == ["worker-0", "worker-1"]
        assert "worker-0: plain words" in lines

    def test_users_error_of_a_process_is_the_one_line(self, standins):
        serve = standins.serve(STANDIN_FAULT="user")
        out, err = serve.communicate(timeout=10)
        assert (serve.returncode, out) == (2, "")
        assert err.splitlines() == [
            "Starting worker-0, scheduler, gateway",
            "batchyard: model.safetensors is truncated",
        ]

    def test_crash_of_a_process(self, standins):
        serve = standins.serve("--log-format", "console", STANDIN_FAULT="crash")
        out, err = serve.communicate(timeout=10)
        assert (serve.returncode, out) == (1, "")
        assert "RuntimeError: no such luck" in err.splitlines()
        assert "process_ended_before_ready" in err

    def test_what_dies_is_restarted_and_none_outlives_a_killed_supervisor(self, standins, eventually):
        serve = standins.serve()
        standins.ready(serve)
        (pid,) = [pid for name, pid in standins.notes("start") if name == "worker-0"]
        os.kill(int(pid), signal.SIGKILL)
        eventually(lambda: [name for name, _ in standins.notes("start")].count("worker-0") == 2)
        serve.kill()
        _, err = serve.communicate(timeout=10)
        (logged,) = [json.loads(text) for text in err.splitlines() if "process_ended" in text]
        assert (logged["process"], logged["name"], logged["code"]) == ("serve", "worker-0", -9)
        eventually(lambda: len(standins.notes("end")) == 3)
        assert {name for name, _ in standins.notes("end")} == {"gateway", "scheduler", "worker-0"}

    def test_port_in_use(self, standins):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            out, err = standins.serve("--port", str(port)).communicate(timeout=10)
        assert out == ""
        assert err == (
            f"batchyard: --port {port}: another process uses this port on 127.0.0.1; choose another port\n"
        )
