"""`batchyard top` as a process: into a pipe, and on a pseudo-terminal."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from contextlib import contextmanager

import pytest

from batchyard.errors import ConfigError
from batchyard.top.command import main

COMMAND = [sys.executable, "-m", "batchyard.cli", "top"]
DEADLINE_S = 20
_ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|[=>])")


@pytest.fixture
def env():
    # Nor the size of a terminal that is not ours.
    size = ("COLUMNS", "LINES")
    return {name: value for name, value in os.environ.items() if not name.startswith(("BATCHYARD_", *size))}


def run(*arguments, env):
    return subprocess.run(
        [*COMMAND, *arguments], env=env, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )


def test_into_a_pipe_it_is_printed_once(server, env):
    done = run("--url", server.url, env=env | {"BATCHYARD_API_KEY": "secret"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "worker-0" in done.stdout
    assert "\x1b" not in done.stdout
    assert server.authorizations == ["Bearer secret"]


def test_it_finds_the_gateway_by_its_settings(server, env):
    done = run("--once", env=env | {"BATCHYARD_PORT": server.url.rsplit(":", 1)[1]})
    assert "worker-0" in done.stdout


def test_mistakes_are_one_line(server, env):
    server.stop()
    done = run("--once", "--url", server.url, env=env)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"batchyard: top: http://\S+ cannot be reached: .*\n", done.stderr)
    with pytest.raises(ConfigError, match="http://"):
        main(["--url", "localhost:8000"])
    with pytest.raises(ConfigError, match="top: unrecognized arguments: --ulr"):
        main(["--ulr", "x"])


class Terminal:
    """What a person sees of a command, and types."""

    def __init__(self, file, process) -> None:
        self.process = process
        self._file = file
        self.seen = ""

    def until(self, words: str) -> None:
        """Waits until `words` are drawn, from here on."""
        deadline = time.monotonic() + DEADLINE_S
        while words not in _ESCAPES.sub("", self.seen):
            left = deadline - time.monotonic()
            assert left > 0, f"never seen: {words!r} in {self.seen[-3000:]!r}"
            if select.select([self._file], [], [], left)[0]:
                try:
                    self.seen += os.read(self._file, 65536).decode("utf-8", "replace")
                except OSError as error:  # the other side is closed
                    raise AssertionError(f"ended before {words!r}: {self.seen[-3000:]!r}") from error

    def forget(self) -> None:
        self.seen = ""

    def type(self, keys: str) -> None:
        os.write(self._file, keys.encode())

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._file, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def settings(self) -> list:
        return termios.tcgetattr(self._file)

    def end(self) -> int:
        """The exit code; what is still drawn is seen."""
        while True:
            try:
                if not (data := os.read(self._file, 65536)):
                    break
            except OSError:
                break
            self.seen += data.decode("utf-8", "replace")
        return self.process.wait(timeout=DEADLINE_S)


@contextmanager
def terminal(*arguments, env, columns=120, rows=30):
    mine, theirs = pty.openpty()
    fcntl.ioctl(mine, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=env | {"TERM": "xterm-256color"},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    try:
        yield Terminal(mine, process)
    finally:
        process.kill()
        process.wait()
        os.close(mine)


@pytest.mark.parametrize("key", ["q", "\x03"], ids=["q", "Ctrl-C"])
def test_on_a_terminal_until_a_key(server, env, key):
    with terminal("--url", server.url, env=env) as shown:
        before = shown.settings()
        shown.until("worker-0")
        assert "\x1b[?1049h" in shown.seen  # the alternate screen
        shown.forget()
        server.state = server.state | {"totals": server.state["totals"] | {"running": 777}}
        shown.until("777")
        shown.type(key)
        assert shown.end() == 0
        assert "\x1b[?1049l" in shown.seen
        assert "\x1b[?25h" in shown.seen  # the cursor is back
        assert shown.settings() == before


def test_a_server_that_goes_and_comes_back(server, env):
    with terminal("--url", server.url, env=env) as shown:
        shown.until("ready")
        server.stop()
        shown.until("connection lost")
        assert "worker-0" in shown.seen
        shown.forget()
        server.start()
        shown.until("demo  ready")
        os.kill(shown.process.pid, signal.SIGTERM)
        assert shown.end() == 0


def test_a_server_that_is_not_there_yet_is_waited_for(server, env):
    server.stop()
    with terminal("--url", server.url, env=env) as shown:
        shown.until("cannot be reached")
        server.start()
        shown.until("worker-0")


def test_it_follows_the_size_of_the_window(server, env):
    with terminal("--url", server.url, env=env, columns=100) as shown:
        shown.until("worker-0")
        assert "where the time went" not in shown.seen
        shown.forget()
        shown.resize(140, 40)
        shown.until("where the time went")


def test_a_key_that_is_refused_ends_it_with_one_line(server, env):
    server.status, server.state = 401, {"error": {"message": "The API key is wrong."}}
    with terminal("--url", server.url, env=env) as shown:
        shown.until("batchyard: The API key is wrong.")
        assert shown.end() == 2
