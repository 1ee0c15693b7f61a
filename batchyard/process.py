"""One child process: in a session of its own, tied to our life, its output read line by line."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator

from batchyard.plan import ProcessSpec

USER_ERROR_MARK = "batchyard: "
"""How the `batchyard` command begins the one line about an error that the user can mend."""

OnLine = Callable[[str, str], None]


@contextlib.contextmanager
def lifeline() -> Iterator[int]:
    """The reading end of a pipe that nobody writes to; children see its end when this process is gone."""
    reading, writing = os.pipe()
    try:
        yield reading
    finally:
        os.close(writing)
        os.close(reading)


class Process:
    """Runs a spec, as often as asked. `on_line(name, line)` gets all it writes but the user's error."""

    def __init__(self, spec: ProcessSpec, lifeline: int, on_line: OnLine) -> None:
        self.spec = spec
        self.user_error: str | None = None
        """The one line that the last run ended with, if the user can mend it."""
        self.pid: int | None = None
        """Of the running process, or else of the last one."""
        self._lifeline = lifeline
        self._on_line = on_line
        self._process: asyncio.subprocess.Process | None = None
        self._ending = False

    async def run(self) -> int:
        """Starts the process, and returns its exit code once it has ended; -N where signal N ended it."""
        self.user_error = None
        process = await asyncio.create_subprocess_exec(
            *self.spec.command,
            env=self.spec.env,
            stdin=self._lifeline,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            # Ctrl-C in a terminal goes to us alone: we end them in order.
            start_new_session=True,
        )
        self._process, self.pid = process, process.pid
        if self._ending:
            self.end()
        assert process.stdout is not None
        async for line in _lines(process.stdout):
            if line.startswith(USER_ERROR_MARK):
                self.user_error = line.removeprefix(USER_ERROR_MARK)
            else:
                self._on_line(self.spec.name, line)
        code = await process.wait()
        self._process = None
        return code

    def end(self) -> None:
        """Asks the process to end, now or as soon as it has started."""
        self._ending = True
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()

    def kill(self) -> None:
        """Ends the process, and all that it started, at once."""
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """Lines of any length, without their ends."""
    rest = b""
    while chunk := await stream.read(1 << 16):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.decode("utf-8", "replace").rstrip("\r")
    if rest:
        yield rest.decode("utf-8", "replace")
