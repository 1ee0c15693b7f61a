"""A longer wire: `python -m bench.delay_proxy --listen unix:/tmp/a.sock --to unix:/tmp/b.sock --delay-ms 1`.

Passes on the bytes of every connection, in order, each chunk a fixed time after it came, in both directions.
However much is on the way, nothing is held back for it: the delay is a latency, not a limit of bandwidth.
"""

import argparse
import asyncio
import selectors
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from batchyard.lifeline import end_with_parent

T = TypeVar("T")
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

_CHUNK = 1 << 18  # bytes


@dataclass(slots=True)
class Delay:
    """In each direction, for what comes from now on; nothing overtakes what came before it."""

    seconds: float


@asynccontextmanager
async def delaying(listen: str, to: str, delay: Delay) -> AsyncIterator[None]:
    """For the time of the block, passes connections to `listen` on to `to`: host:port or unix:/path."""

    connections: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(_connection(reader, writer, to, delay))
        connections.add(task)
        task.add_done_callback(connections.discard)

    async with await _listen(listen, connected):
        yield
    for task in connections:
        task.cancel()
    await asyncio.gather(*connections, return_exceptions=True)


async def _connection(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, to: str, delay: Delay
) -> None:
    writers = [writer]
    try:
        with suppress(OSError):
            upstream, upstream_writer = await _connect(to)
            writers.append(upstream_writer)
            await asyncio.gather(_pump(reader, upstream_writer, delay), _pump(upstream, writer, delay))
    finally:
        for end in writers:
            end.close()
        for end in writers:
            with suppress(OSError):
                await end.wait_closed()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: Delay) -> None:
    """Until the end of `reader`, which is passed on like everything else."""
    loop = asyncio.get_running_loop()
    chunks: deque[bytes] = deque()
    over = loop.create_future()

    def pass_on() -> None:
        # Timers that are due together fire in any order; chunks leave in theirs.
        if chunk := chunks.popleft():
            writer.write(chunk)
        else:
            with suppress(OSError):
                writer.write_eof()
            over.set_result(None)

    with suppress(ConnectionError):
        while chunk := await reader.read(_CHUNK):
            chunks.append(chunk)
            loop.call_later(delay.seconds, pass_on)
    chunks.append(b"")
    loop.call_later(delay.seconds, pass_on)
    await over


async def _connect(address: str) -> Streams:
    if path := _unix_path(address):
        return await asyncio.open_unix_connection(path)
    host, _, port = address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def _listen(
    address: str, connected: Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]
) -> asyncio.Server:
    if path := _unix_path(address):
        return await asyncio.start_unix_server(connected, path)
    host, _, port = address.rpartition(":")
    return await asyncio.start_server(connected, host, int(port))


def _unix_path(address: str) -> str | None:
    return address.removeprefix("unix:") if address.startswith("unix:") else None


def run_precisely(main: Coroutine[Any, Any, T]) -> T:
    """Like `asyncio.run`, on a loop whose timers are good to microseconds: those of others wait whole ms."""
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        return runner.run(main)


def main() -> None:
    """Runs until it is ended; says so in a line when it listens."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--listen", required=True, metavar="ADDRESS")
    parser.add_argument("--to", required=True, metavar="ADDRESS")
    parser.add_argument("--delay-ms", type=float, default=1.0, help="in each direction")
    parser.add_argument("--end-with-parent", action="store_true", help="end when standard input does")
    arguments = parser.parse_args()
    if arguments.end_with_parent:
        end_with_parent(sys.stdin.fileno())

    async def serve() -> None:
        async with delaying(arguments.listen, arguments.to, Delay(arguments.delay_ms / 1000)):
            print(f"{arguments.listen} is {arguments.to}, {arguments.delay_ms} ms away", flush=True)
            await asyncio.Event().wait()

    run_precisely(serve())


if __name__ == "__main__":
    main()
