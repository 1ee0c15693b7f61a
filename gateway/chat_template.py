"""Renders conversations by a model's chat template, in a process of its own: see gateway.template_process.

A sandbox for Python code keeps a template from files, and not from `{{ 10 ** 10 ** 10 }}`, which holds the
interpreter for years, nor from taking all memory. A process can be ended.
"""

import json
import os
import select
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog

from batchyard.errors import InvalidRequest
from gateway.template_process import LENGTH, MAX_TEXT, encoded

log = structlog.get_logger()

PATIENCE_S = 5.0
_START_S = 60.0  # on a machine that is busy loading a model
_MAX_REPLY = 6 * MAX_TEXT + 1024  # bytes: as JSON a character has up to 6

_SCRIPT = Path(__file__).with_name("template_process.py")
# All it gets of our environment; the rest has keys and passwords in it.
_ENVIRONMENT = (
    *("PATH", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH"),
    *("HOME", "TMPDIR", "TZ", "LANG", "LC_ALL"),
)


class _Died(Exception):
    """The process ended by itself."""


class ChatTemplate:
    """The process, which is started when it is needed, and again when it had to be ended. Thread-safe."""

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        """A conversation that takes longer than `patience_s` is refused."""
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._process: _Process | None = None

    def start(self) -> None:
        """Starts the process, and does not wait for it: the first conversation will find it ready."""
        with self._lock:
            self._started()

    def render(self, template: str, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> str:
        """The text of a conversation; waits for its turn, and blocks. `options` are the template's variables.

        Raises InvalidRequest with the reason where the template refuses the messages or is not fit for them.
        """
        request = {"template": template, "messages": messages, "options": options}
        data = encoded(request)
        with self._lock:
            reply = self._ask(LENGTH.pack(len(data)) + data)
        if "error" in reply:
            raise InvalidRequest(f"the chat template refused the messages: {reply['error']}", "messages")
        return reply["text"]

    def close(self) -> None:
        """Ends the process."""
        with self._lock:
            self._end()

    def _ask(self, request: bytes) -> dict[str, str]:
        for last in (False, True):
            process = self._started()
            try:
                process.wait_started()
                return process.ask(request, time.monotonic() + self._patience_s)
            except TimeoutError:
                self._end()
                log.warning("chat template ended: it took too long", patience_s=self._patience_s)
                raise InvalidRequest(
                    f"the chat template took longer than {self._patience_s:g} s", "messages"
                ) from None
            except _Died:
                # Perhaps somebody killed it; whoever kills it twice is the template.
                self._end()
                log.warning("the process that renders chats died")
                if last:
                    raise InvalidRequest("the chat template broke down on the messages", "messages") from None
        raise AssertionError

    def _started(self) -> "_Process":
        if self._process is None:
            self._process = _Process()
        return self._process

    def _end(self) -> None:
        if self._process:
            self._process.end()
            self._process = None


class _Process:
    """One life of the process."""

    def __init__(self) -> None:
        env = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        # Threads for linear algebra would take their share of its memory.
        env |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        popen = subprocess.Popen(
            [sys.executable, "-P", str(_SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
            bufsize=0,
        )
        assert popen.stdin is not None
        assert popen.stdout is not None
        self._in, self._out = popen.stdin.fileno(), popen.stdout.fileno()
        for pipe in (self._in, self._out):
            os.set_blocking(pipe, False)
        self._started = False
        # Whoever forgets to end it ends it.
        self.end = weakref.finalize(self, _kill, popen)

    def wait_started(self) -> None:
        """Raises TimeoutError and _Died."""
        if not self._started:
            self._read(time.monotonic() + _START_S)
            self._started = True

    def ask(self, request: bytes, deadline: float) -> dict[str, str]:
        """Raises TimeoutError and _Died."""
        rest = memoryview(request)
        while rest:
            _wait(self._in, select.POLLOUT, deadline)
            try:
                rest = rest[os.write(self._in, rest) :]
            except BrokenPipeError as error:
                raise _Died from error
        reply: dict[str, str] = json.loads(self._read(deadline))
        return reply

    def _read(self, deadline: float) -> bytes:
        (length,) = LENGTH.unpack(self._read_exactly(LENGTH.size, deadline))
        if length > _MAX_REPLY:
            raise _Died  # it is not our program any more
        return self._read_exactly(length, deadline)

    def _read_exactly(self, length: int, deadline: float) -> bytes:
        data = bytearray()
        while len(data) < length:
            _wait(self._out, select.POLLIN, deadline)
            part = os.read(self._out, length - len(data))
            if not part:
                raise _Died
            data += part
        return bytes(data)


def _wait(pipe: int, event: int, deadline: float) -> None:
    """Returns when `pipe` is ready, or broken. Raises TimeoutError at `deadline`."""
    poll = select.poll()
    poll.register(pipe, event)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise TimeoutError


def _kill(popen: "subprocess.Popen[bytes]") -> None:
    popen.kill()
    popen.wait()
    for pipe in (popen.stdin, popen.stdout):
        if pipe:
            pipe.close()
