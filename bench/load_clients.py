"""What a load test's own client costs: `python -m bench.load_clients`.

A server process streams events at an even pace on many connections at once, each event with the time at which
it was written. Each client reads them all in a process of its own: that of `batchyard bench`, aiohttp's,
httpx's. Late is from the write to the client's stamp; a client that is slow shows it there, and so would the
figures it takes.
"""

import argparse
import asyncio
import json
import multiprocessing
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from multiprocessing.connection import Connection

import aiohttp
import httpx
import numpy as np
import uvloop

from batchyard.loadtest.answers import read_stream
from batchyard.loadtest.client import Client, parse_url

_REQUEST = b'{"prompt": "x"}'
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_FILL = "x" * 140  # so that an event is as long as a real one

Stamps = list[tuple[float, float]]  # written, read


@dataclass(frozen=True, slots=True)
class Load:
    """So many streams of so many events, so many a second on each."""

    streams: int
    events: int
    pace: float


def _chunk(payload: str) -> bytes:
    body = f"data: {payload}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(body), body)


async def _serve(load: Load, port: Connection) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(_HEAD)
        # Streams begin apart, as those of a busy server do not: their events would come in one burst
        # otherwise.
        start = time.perf_counter() + 1 + np.random.default_rng().random() / load.pace
        for number in range(load.events):
            await asyncio.sleep(max(0.0, start + number / load.pace - time.perf_counter()))
            choice = {"index": 0, "text": repr(time.perf_counter()), "finish_reason": None}
            writer.write(_chunk(json.dumps({"id": _FILL, "choices": [choice], "usage": None})))
        writer.write(_chunk("[DONE]") + b"0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=4096)
    port.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def _server(load: Load, port: Connection) -> None:
    uvloop.run(_serve(load, port))


async def _ours(url: str, streams: int) -> Stamps:
    client, one_reads = Client(parse_url(url), None, 600), asyncio.Lock()

    async def one() -> Stamps:
        exchange = await client.post("/v1/completions", _REQUEST)
        async with one_reads:
            answer = await read_stream(exchange)
        return [(float(text), at) for text, at in zip(answer.text, answer.stamps, strict=True)]

    return list(chain.from_iterable(await asyncio.gather(*(one() for _ in range(streams)))))


def _event(line: str) -> float | None:
    if not line.startswith("data:") or "[DONE]" in line:
        return None
    return float(json.loads(line[5:])["choices"][0]["text"])


async def _aiohttp(url: str, streams: int) -> Stamps:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def one() -> Stamps:
            stamps = []
            async with session.post(f"{url}/v1/completions", data=_REQUEST) as response:
                async for line in response.content:
                    at = time.perf_counter()
                    if (written := _event(line.decode())) is not None:
                        stamps.append((written, at))
            return stamps

        return list(chain.from_iterable(await asyncio.gather(*(one() for _ in range(streams)))))


async def _httpx(url: str, streams: int) -> Stamps:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=600, limits=limits) as client:

        async def one() -> Stamps:
            stamps = []
            async with client.stream("POST", f"{url}/v1/completions", content=_REQUEST) as response:
                async for line in response.aiter_lines():
                    at = time.perf_counter()
                    if (written := _event(line)) is not None:
                        stamps.append((written, at))
            return stamps

        return list(chain.from_iterable(await asyncio.gather(*(one() for _ in range(streams)))))


CLIENTS: Mapping[str, Callable[[str, int], Awaitable[Stamps]]] = {
    "batchyard bench": _ours,
    "aiohttp": _aiohttp,
    "httpx": _httpx,
}


def _client(name: str, url: str, streams: int, result: Connection) -> None:
    async def run() -> Stamps:
        return await CLIENTS[name](url, streams)

    used = time.process_time()
    stamps = uvloop.run(run())
    result.send((time.process_time() - used, stamps))


def measure(name: str, url: str, load: Load) -> str:
    """A row of the table."""
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_client, args=(name, url, load.streams, sending))
    process.start()
    used, stamps = receiving.recv()
    process.join()
    late = 1000 * np.array([read - written for written, read in stamps])
    assert len(late) == load.streams * load.events
    p50, p99 = np.percentile(late, [50, 99])
    share = used / (load.events / load.pace)
    return f"| {name} | {1e6 * used / len(late):.0f} | {share:.0%} | {p50:.1f} | {p99:.1f} |"


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--events", type=int, default=200, help="of each stream")
    parser.add_argument("--pace", type=float, default=20.0, help="events a second of each stream")
    load = Load(**vars(parser.parse_args()))
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    server = context.Process(target=_server, args=(load, sending), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{receiving.recv()}"
    print(f"{load.streams} streams, {load.pace:g} events a second on each\n")
    print("| client | µs of CPU an event | of a core | late, p50 ms | late, p99 ms |")
    print("|---|--:|--:|--:|--:|")
    for name in CLIENTS:
        print(measure(name, url, load), flush=True)
    server.terminate()


if __name__ == "__main__":
    main()
