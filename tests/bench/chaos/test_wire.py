"""Real TCP between two network namespaces, and what becomes of its packets."""

import asyncio
import sys
import time

import pytest

from bench.chaos.wire import CALM, CUT, Weather, Wire, allowed

pytestmark = pytest.mark.skipif(not allowed(), reason="only root may make network namespaces")

ECHO = """
import socket, sys
with socket.create_server((sys.argv[1], 0)) as server:
    print(server.getsockname()[1], flush=True)
    connection, _ = server.accept()
    while data := connection.recv(1 << 16):
        connection.sendall(data)
"""


@pytest.fixture
async def wire():
    with Wire() as wire:
        yield wire


@pytest.fixture
async def echo(wire):
    """Both ends of a connection to a process at the far end, which sends back what it gets."""
    command = [*wire.inside, sys.executable, "-c", ECHO, wire.far_host]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    port = int(await process.stdout.readline())
    reader, writer = await asyncio.open_connection(wire.far_host, port)
    yield reader, writer
    wire.weather = CALM
    writer.close()
    await writer.wait_closed()
    await asyncio.wait_for(process.wait(), 20)


async def ask(echo, data: bytes) -> float:
    """Seconds until all of it is back."""
    reader, writer = echo
    began = time.monotonic()
    writer.write(data)
    async with asyncio.timeout(20):
        assert await reader.readexactly(len(data)) == data
    return time.monotonic() - began


async def test_a_far_packet_takes_its_time_in_both_directions(wire, echo):
    await ask(echo, b"x")
    wire.weather = Weather(delay_s=0.05)
    assert await ask(echo, b"y") >= 0.1


async def test_what_is_lost_is_sent_again(wire, echo):
    wire.weather = Weather(loss=0.2)
    await ask(echo, bytes(200_000))
    assert wire.dropped > 0


async def test_nothing_comes_through_a_cut_until_it_is_healed(wire, echo):
    wire.weather = CUT
    waiting = asyncio.create_task(ask(echo, b"z"))
    async with asyncio.timeout(20):
        while wire.dropped < 2:
            await asyncio.sleep(0.01)
    assert not waiting.done()
    wire.weather = CALM
    await waiting
