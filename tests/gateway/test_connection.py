"""Clients that are slow to send and slow to read, on real sockets."""

import asyncio
import contextlib
import json
from contextlib import asynccontextmanager

import pytest

from gateway.connection import MAX_HEAD
from gateway.server import HttpServer, bind
from gateway.types import Piece
from tests.gateway.api_fakes import FakeGenerator, make_app

TIMEOUT_S = 0.2
DEADLINE_S = 10
BODY = json.dumps({"model": "demo", "prompt": "hi", "stream": True}).encode()
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY


@asynccontextmanager
async def connected(generator=None, timeout_s=TIMEOUT_S):
    """A connection, and a second one of somebody who behaves."""
    server = HttpServer(make_app(generator), bind("127.0.0.1", 0, share_port=False), 0, timeout_s)
    server.start()
    port = int(server.url.rsplit(":", 1)[1])
    # A client that reads little at a time: its kernel must not take the whole answer for it.
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    try:
        async with asyncio.timeout(DEADLINE_S):
            yield reader, writer
    finally:
        writer.transport.abort()
        await server.stop()


@pytest.mark.parametrize("part", [b"", HEAD, HEAD + b"Content-Length: 100\r\n\r\n{"])
async def test_a_request_that_does_not_come_is_not_waited_for(part):
    async with connected() as (reader, writer):
        writer.write(part)
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""


async def test_a_request_in_time_is_answered_however_long_that_takes():
    async with connected(FakeGenerator(hangs_after=1)) as (reader, writer):
        writer.write(WHOLE)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        await asyncio.wait([asyncio.create_task(reader.read())], timeout=3 * TIMEOUT_S)
        assert not reader.at_eof()


async def test_the_next_request_of_a_connection_has_its_own_time():
    async with connected() as (reader, writer):
        for _ in range(3):
            writer.write(WHOLE)
            while await reader.readline() != b"data: [DONE]\n":
                pass
            await asyncio.sleep(TIMEOUT_S / 2)


@pytest.mark.parametrize("line", [b"X: " + b"y" * 100 + b"\r\n", b"z" * 100])
async def test_headers_without_end_are_refused(line):
    async with connected(timeout_s=DEADLINE_S) as (reader, writer):
        sent = 0
        writer.write(HEAD)
        while not writer.transport.is_closing() and sent < 100 * MAX_HEAD:
            writer.write(line * 50)
            sent += 50 * len(line)
            await asyncio.sleep(0)
            if reader._buffer:
                break
        assert b"400" in await reader.readline()
        assert sent < 20 * MAX_HEAD


class Flood(FakeGenerator):
    """An answer without end, as fast as it is taken; `given` counts what was."""

    given = 0

    async def _pieces(self, request):
        while True:
            self.given += 1
            yield Piece("x" * 1000, (1,))
            await asyncio.sleep(0)


async def test_a_client_that_does_not_read_holds_little_and_is_cut_off():
    flood = Flood()
    async with connected(flood) as (reader, writer):
        writer.write(WHOLE)
        await reader.readline()
        await flood.closed.wait()  # the request is cancelled
    # What is gone is in buffers of the kernel's, which give up at a few megabytes.
    assert flood.given < 20_000


async def test_a_client_that_reads_slowly_is_served():
    flood = Flood()
    async with connected(flood) as (reader, writer):
        writer.write(WHOLE)
        began = asyncio.get_running_loop().time()
        while asyncio.get_running_loop().time() - began < 4 * TIMEOUT_S:
            assert await reader.read(512 * 1024)
            await asyncio.sleep(0.005)
        assert flood.running


@pytest.mark.parametrize(
    "nonsense", [b"NONSENSE\r\n\r\n", b"\x16\x03\x01\x02\x00", HEAD + b"Content-Length: x\r\n\r\n"]
)
async def test_what_is_no_http_is_answered_as_every_error(nonsense):
    async with connected(timeout_s=DEADLINE_S) as (reader, writer):
        writer.write(nonsense)
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert b"content-length: %d" % len(body) in head
        assert json.loads(body)["error"]["code"] == "invalid_http"


async def test_nonsense_amid_an_answer_cuts_it_off_and_adds_nothing():
    async with connected(FakeGenerator(hangs_after=1), timeout_s=DEADLINE_S) as (reader, writer):
        writer.write(WHOLE)
        await reader.readuntil(b"data: ")
        writer.write(b"NONSENSE\r\n\r\n")
        assert b"HTTP/1.1 400" not in await reader.read()
