"""The terminal while `batchyard top` has it: drawn when there is news, and given back as it was."""

import asyncio
import os
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from batchyard.errors import BatchyardError, UserError
from batchyard.top.client import Gateway, Poller, State
from batchyard.top.frame import frame, without_state


class Screen:
    """What was told last, and since when nothing was."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._state: State | None = None
        self._trouble: str | None = f"Asking {gateway.url}"
        self._lost_at = time.monotonic()
        self._changed = asyncio.Event()
        self._refused: UserError | None = None
        self._over = False

    async def run(self) -> None:
        """Until q, Ctrl-C or SIGTERM. Raises UserError where trying again would not help."""
        loop = asyncio.get_running_loop()
        poller = Poller(self._gateway, lambda told: loop.call_soon_threadsafe(self._take, told))
        console = Console()
        with self._keyboard(loop), Live(console=console, screen=True, auto_refresh=False) as live:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                loop.add_signal_handler(number, self._end)
            loop.add_signal_handler(signal.SIGWINCH, self._changed.set)
            poller.start()
            while not self._over:
                self._changed.clear()
                live.update(self._picture(console), refresh=True)
                await self._changed.wait()
            poller.end()
        if self._refused:
            raise self._refused

    def _picture(self, console: Console) -> RenderableType:
        trouble = self._trouble
        if self._state is None:
            return without_state(trouble or "")
        if trouble:
            trouble = f"connection lost {time.monotonic() - self._lost_at:.0f} s ago ({trouble})"
        return frame(self._state, console.width, console.height, trouble)

    def _take(self, told: State | BatchyardError) -> None:
        if isinstance(told, UserError):
            self._refused = told
            self._end()
        elif isinstance(told, BatchyardError):
            if self._trouble is None:
                self._lost_at = time.monotonic()
            self._trouble = str(told)
        else:
            self._state, self._trouble = told, None
        self._changed.set()

    def _end(self) -> None:
        self._over = True
        self._changed.set()

    @contextmanager
    def _keyboard(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """Keys come one by one and are not shown; none come where standard input is no terminal."""
        if not sys.stdin.isatty():
            yield
            return
        file = sys.stdin.fileno()
        before = termios.tcgetattr(file)
        tty.setcbreak(file)
        loop.add_reader(file, self._key, file)
        try:
            yield
        finally:
            loop.remove_reader(file)
            with suppress(termios.error):  # a terminal that was closed
                termios.tcsetattr(file, termios.TCSADRAIN, before)

    def _key(self, file: int) -> None:
        keys = b""
        with suppress(OSError):
            keys = os.read(file, 64)
        if not keys or b"q" in keys.lower():  # nothing: the terminal is gone
            self._end()


def show_once(gateway: Gateway) -> None:
    """Prints the state now. Raises ServerAway and Refused."""
    console = Console()
    state = gateway.state()
    width, height = console.width, console.height if console.is_terminal else 1000
    console.print(frame(state, width, height))
    if not console.is_terminal and state["reason"]:
        console.print(Text(state["reason"]))
