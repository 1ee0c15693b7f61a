import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from batchyard import cli
from batchyard.config import WorkerSettings

CODE = """
import asyncio
from batchyard.errors import ModelError

async def run(settings):
    if settings.seed == 1:
        raise ModelError("the folder is empty")
    if settings.seed == 2:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
    if settings.seed == 3:
        raise RuntimeError("no such luck")
    if settings.seed == 4:
        raise ExceptionGroup("two", [ModelError("one"), ModelError("two")])
    if settings.seed == 5:
        return 7

async def fail():
    raise ModelError("the folder is empty")
"""


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_logging: None) -> None:
    """Makes `batchyard worker` run CODE."""
    (tmp_path / "standin_worker.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "standin_worker", raising=False)
    monkeypatch.setitem(cli.COMMANDS, "worker", cli.Command("standin_worker", WorkerSettings))
    for name in [name for name in os.environ if name.startswith("BATCHYARD_")]:
        monkeypatch.delenv(name)


def run(*argv: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(argv)
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_help(argv, capsys):
    assert run(*argv) == 0
    shown = capsys.readouterr().out
    assert [name for name in (*cli.COMMANDS, *cli.TOOLS) if f"  {name}" not in shown] == []


def test_version(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("batchyard 0")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["severe"], ["'severe' is not a command", "serve?"]),
        (["drain"], ["drain: ", "worker"]),
        (["worker", "--block-sise", "3"], ["--block-sise", "--block-size?"]),
        (["serve", "--host", "no.such.host.invalid"], ["--host no.such.host.invalid"]),
        (
            ["serve", "--port", "0", "--grpc-port", "0", "--model", "./none"],
            ["--model ./none", "no such folder"],
        ),
    ],
)
@pytest.mark.usefixtures("own_logging")
def test_a_mistake_is_one_line(argv, words, capsys):
    assert run(*argv) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("batchyard: ")
    assert [word for word in words if word not in line] == []
    assert captured.out == ""


@pytest.mark.usefixtures("worker")
class TestRun:
    def test_end(self):
        assert run("worker") == 0

    def test_exit_code(self):
        assert run("worker", "--seed", "5") == 7

    @pytest.mark.parametrize("seed", ["1", "2"])
    def test_users_error(self, seed, capsys):
        assert run("worker", "--seed", seed) == 2
        assert capsys.readouterr().err == "batchyard: the folder is empty\n"

    @pytest.mark.parametrize(("seed", "words"), [("3", "no such luck"), ("4", "sub-exceptions")])
    def test_crash(self, seed, words, capsys):
        assert run("worker", "--seed", seed) == 1
        logged = capsys.readouterr().err
        assert "crashed" in logged
        assert words in logged


def test_help_is_quick_and_imports_little():
    code = "import sys, batchyard.cli as c\ntry: c.main(['--help'])\nfinally: print(sorted(sys.modules))"
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.monotonic() - start < 2  # 0.15 s on an idle machine
    assert [
        name for name in ("torch", "transformers", "grpc", "numpy", "uvloop") if f"'{name}'" in done.stdout
    ] == []


def test_interrupt_has_no_traceback(standins):
    # Where the tests run in the background of a shell, the signal is ignored unless somebody wants it.
    code = "from signal import *\nsignal(SIGINT, default_int_handler)\nraise_signal(SIGINT)\n"
    (standins.folder / "gpu_worker" / "main.py").write_text(code)
    command = [sys.executable, "-P", "-m", "batchyard.cli", "worker"]
    done = subprocess.run(command, env=standins.env, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
