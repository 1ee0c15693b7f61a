"""Thousands of quiet streams and some that hardly read, on one gateway: `python -m bench.idle_streams`.

A normal client asks for eight tokens, 10 ms apart. Milliseconds to the first and the last of them:

    nobody    beside nobody
    idle      beside 5,000 streams that get a token every ten seconds or so
    readers   and beside 100 clients that get 20 tokens a second, and read them
    slow      the same with 100 more, which read one byte a second

The gateway is real; tokens come from bench/simulation/pulse.py, the first of an answer at once.
"""

import argparse
import asyncio
import contextlib
import multiprocessing
import resource
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import cast

import numpy as np
import uvloop

from bench.lean_client import Client, Reply, completion_body, in_time, post
from bench.request_rate import arrivals
from bench.stand_ins import SCHEDULER, Fleet, Meter, machine, stand_ins

_OPEN_AT_ONCE = 50
_ANSWER = 8  # tokens of the normal client's
_ENDLESS = 1_000_000  # tokens
_START_S = 120.0


@dataclass(frozen=True, slots=True)
class Options:
    """The command line."""

    idle: int  # streams
    busy: int  # clients that read, and as many that hardly do
    rate: float  # requests a second of the normal client
    seconds: float  # of each measurement


class _Stream(asyncio.Protocol):
    """A stream that is open, and read."""

    def __init__(self) -> None:
        self.begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.events = 0
        self.open = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def ask(self, name: str) -> None:
        self._transport.write(post(name, completion_body("quiet", _ENDLESS)))

    def data_received(self, data: bytes) -> None:
        self.events += data.count(b"data: ")
        if not self.begun.done():
            self.begun.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False


async def _open_streams(kind: str, port: int, count: int) -> list[_Stream]:
    loop = asyncio.get_running_loop()
    turns = asyncio.Semaphore(_OPEN_AT_ONCE)

    async def open_one(number: int) -> _Stream:
        async with turns:
            _, stream = await loop.create_connection(_Stream, "127.0.0.1", port)
            stream.ask(f"{kind}-{number}")
            await stream.begun
            return stream

    return await asyncio.gather(*map(open_one, range(count)))


def _open_slow(port: int, count: int) -> list[socket.socket]:
    """Clients with the smallest of buffers, so that what they do not read stays at the gateway's side."""
    sockets = []
    for number in range(count):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        client.connect(("127.0.0.1", port))
        client.sendall(post(f"steady-slow-{number}", completion_body("slow", _ENDLESS)))
        client.setblocking(False)
        sockets.append(client)
    return sockets


async def _read_slowly(clients: Sequence[socket.socket]) -> None:
    while True:
        for client in clients:
            with contextlib.suppress(BlockingIOError):
                client.recv(1)
        await asyncio.sleep(1.0)


async def _crowd(options: Options, port: int, orders: Connection) -> None:
    """Opens streams as it is told; at the `end` tells how many are still open, and what events they had."""
    loop = asyncio.get_running_loop()
    streams: list[_Stream] = []
    reading: asyncio.Task[None] | None = None
    while (order := await loop.run_in_executor(None, orders.recv)) != "end":
        if order == "idle":
            streams += await _open_streams("idle", port, options.idle)
        elif order == "readers":
            streams += await _open_streams("steady", port, options.busy)
        else:
            reading = asyncio.create_task(_read_slowly(_open_slow(port, options.busy)))
        orders.send(order)
    orders.send((sum(stream.open for stream in streams), sum(stream.events for stream in streams)))
    if reading:
        reading.cancel()


def _run_crowd(options: Options, port: int, orders: Connection) -> None:
    uvloop.run(_crowd(options, port, orders))


def ask_normally(rate: float, seconds: float, port: int) -> list[Reply]:
    """What the normal client meets."""

    async def ask_all() -> list[Reply]:
        client = Client("127.0.0.1", port)
        times = arrivals(rate, seconds, 0.0, seed=0)
        start = asyncio.get_running_loop().time()
        body = completion_body("normal", _ANSWER)
        replies = await in_time(times, start, lambda n: client.ask(f"normal-{n}", body))
        client.close()
        return replies

    return uvloop.run(ask_all())


def measure(name: str, options: Options, fleet: Fleet) -> None:
    """Prints one line."""
    meter = Meter(fleet.pids())
    start = time.perf_counter()
    replies = ask_normally(options.rate, options.seconds, fleet.port)
    meter.stop()
    fine = [reply for reply in replies if reply.status == 200 and not reply.broken]
    first = 1000 * np.percentile([reply.first - reply.sent for reply in fine], [50, 99, 100])
    last = 1000 * np.percentile([reply.last - reply.sent for reply in fine], [50, 99, 100])
    _, use, cores = meter.between(start, time.perf_counter())["gateway"]
    cells = " | ".join(f"{value:.1f}" for value in (*first, *last))
    failed = len(replies) - len(fine)
    print(f"| {name} | {len(fine)} | {failed} | {cells} | {use.mib:.0f} | {cores:.2f} |", flush=True)


def run(options: Options) -> None:
    """Prints the table."""
    with stand_ins(1, 1, instead=SCHEDULER) as fleet:
        context = multiprocessing.get_context("spawn")
        orders, theirs = context.Pipe()
        crowd = context.Process(target=_run_crowd, args=(options, fleet.port, theirs), daemon=True)
        crowd.start()
        print("| beside | answered | failed | first p50 | p99 | most | last p50 | p99 | most | MiB | cores |")
        print(f"|---|{'--:|' * 10}")
        ask_normally(options.rate, 2.0, fleet.port)  # what only first times cost
        measure("nobody", options, fleet)
        for order, name in (
            ("idle", f"{options.idle:,} idle streams"),
            ("readers", f"... and {options.busy} readers"),
            ("slow", f"... and {options.busy} slow readers"),
        ):
            start = time.perf_counter()
            orders.send(order)
            if not orders.poll(_START_S):
                raise RuntimeError(f"the streams did not open: {order}")
            orders.recv()
            seconds = time.perf_counter() - start
            time.sleep(1.0)
            measure(f"{name} (opened in {seconds:.1f} s)", options, fleet)
        orders.send("end")
        still_open, events = orders.recv()
        print(f"\nof {options.idle + options.busy:,} streams {still_open:,} are open, with {events:,} events")
        crowd.join()


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--idle", type=int, default=5000, help="streams")
    parser.add_argument(
        "--busy", type=int, default=100, help="readers, and as many that read a byte a second"
    )
    parser.add_argument("--rate", type=float, default=25.0, help="requests a second of the normal client")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    options = Options(**vars(parser.parse_args()))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # the processes inherit it
    print(f"{machine()}; {options}\n", flush=True)
    run(options)


if __name__ == "__main__":
    main()
