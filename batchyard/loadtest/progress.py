"""One line on a terminal that says how far a run is."""

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator
from typing import TextIO

from batchyard.loadtest.outcomes import Kind
from batchyard.loadtest.results import Point
from batchyard.loadtest.runner import Runner, Tally

_EVERY_S = 0.25
_BAR = 24


@contextlib.asynccontextmanager
async def shown(runner: Runner, point: Point, stream: TextIO) -> AsyncIterator[None]:
    """Shows a run while it goes on; nothing where `stream` is no terminal."""
    if not stream.isatty():
        yield
        return
    start = time.monotonic()

    async def draw() -> None:
        while True:
            line = status(runner.tally, str(point), time.monotonic() - start)
            stream.write("\r\x1b[K" + line[: shutil.get_terminal_size().columns - 1])
            stream.flush()
            await asyncio.sleep(_EVERY_S)

    drawing = asyncio.create_task(draw())
    try:
        yield
    finally:
        drawing.cancel()
        stream.write("\r\x1b[K")
        stream.flush()


def status(tally: Tally, name: str, seconds: float) -> str:
    """The line."""
    done = len(tally.outcomes)
    share = min(1.0, done / tally.requests) if tally.requests else 0.0
    filled = int(share * _BAR)
    bar = "█" * filled + "·" * (_BAR - filled)
    of = f"{done}/{tally.requests}" if tally.requests else f"{done}"
    tokens = sum(outcome.output_tokens for outcome in tally.outcomes)
    bad = sum(outcome.kind is not Kind.OK for outcome in tally.outcomes)
    trouble = f", {bad} not answered" if bad else ""
    pace = tokens / seconds if seconds else 0.0
    return f"{name} {bar} {of} done, {tally.running} running{trouble}, {pace:,.0f} tok/s, {seconds:.0f} s"
