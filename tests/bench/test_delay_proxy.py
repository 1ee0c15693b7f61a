"""A longer wire: every byte, in order, later."""

import asyncio
import os
import time

from bench.delay_proxy import Delay, delaying, run_precisely

DELAY_S = 0.02


async def echo(reader, writer):
    while data := await reader.read(1 << 16):
        writer.write(data)
    writer.close()
    await writer.wait_closed()


async def _ask(path, data):
    """What comes back until the end, and the seconds to the first byte."""
    reader, writer = await asyncio.open_unix_connection(path)
    started = time.perf_counter()
    writer.write(data)
    first = await reader.read(1)
    seconds = time.perf_counter() - started
    writer.write_eof()
    rest = await reader.read()
    writer.close()
    await writer.wait_closed()
    return first + rest, seconds


async def test_bytes_come_back_whole_and_twice_the_delay_later(tmp_path):
    near, far = tmp_path / "near", tmp_path / "far"
    data = os.urandom(3 << 20)
    async with (
        await asyncio.start_unix_server(echo, near),
        delaying(f"unix:{far}", f"unix:{near}", Delay(DELAY_S)),
        asyncio.timeout(20),
    ):
        answers = await asyncio.gather(*(_ask(far, data[i:]) for i in range(2)))
    assert [answer for answer, _ in answers] == [data, data[1:]]
    assert min(seconds for _, seconds in answers) >= 2 * DELAY_S


def test_messages_do_not_wait_for_each_other(tmp_path):
    """A hundred one after another, each sent without waiting: they all take one delay each way."""

    async def measure():
        near, far = tmp_path / "near", tmp_path / "far"
        async with (
            await asyncio.start_unix_server(echo, near),
            delaying(f"unix:{far}", f"unix:{near}", Delay(DELAY_S)),
            asyncio.timeout(20),
        ):
            reader, writer = await asyncio.open_unix_connection(far)
            started = time.perf_counter()
            for number in range(100):
                writer.write(bytes([number]))
                await asyncio.sleep(0.0001)
            assert await reader.readexactly(100) == bytes(range(100))
            seconds = time.perf_counter() - started
            writer.write_eof()
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()
            return seconds

    assert 2 * DELAY_S <= run_precisely(measure()) < 50 * DELAY_S
