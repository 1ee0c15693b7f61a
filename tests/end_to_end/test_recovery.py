"""A worker or a scheduler that dies while streams of all kinds run: what the clients see."""

import asyncio
import signal
import time

import aiohttp
import pytest

from tests.end_to_end.stack import Stack
from tests.end_to_end.streams import BASE, difference, play_all, under_way

COUNT = 8


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    with Stack(tmp_path_factory.mktemp("recovery")) as stack:
        yield stack


@pytest.fixture(scope="module")
def calm(stack):
    """The streams, undisturbed."""
    return asyncio.run(play_all(stack.base_url, COUNT))


async def disturbed(stack, calm, *names):
    """The streams while processes are killed and started again."""

    async def disturb(streams):
        await under_way(streams, 10)
        for name in names:
            stack.kill(name)
        for name in names:
            await asyncio.to_thread(stack.start, name)

    async with asyncio.timeout(120):
        streams = await play_all(stack.base_url, len(calm), disturb)
    assert difference(streams, calm) == []
    await stack.idle()
    return streams


async def test_streams_outlive_their_worker(stack, calm):
    await disturbed(stack, calm, "worker")


async def test_streams_outlive_the_scheduler(stack, calm):
    await disturbed(stack, calm, "scheduler")


async def test_streams_outlive_scheduler_and_worker(stack, calm):
    await disturbed(stack, calm, "scheduler", "worker")


async def test_a_worker_that_stands_still_is_noticed_in_about_a_second(stack, calm):
    """And taken on again once it goes on: the streams wait a moment, but their text is the same."""
    noticed_in = []

    async def disturb(streams):
        await under_way(streams, 10)
        stack.signal("worker", signal.SIGSTOP)
        stopped_at = time.monotonic()
        while (await stack.describe()).workers[0].connected:
            await asyncio.sleep(0.02)
        noticed_in.append(time.monotonic() - stopped_at)
        stack.signal("worker", signal.SIGCONT)

    async with asyncio.timeout(120):
        streams = await play_all(stack.base_url, len(calm), disturb)
    assert difference(streams, calm) == []
    assert 0.9 < noticed_in[0] < 3
    await stack.idle()


async def test_requests_wait_for_the_scheduler(stack):
    async with asyncio.timeout(60), aiohttp.ClientSession() as session:
        body = BASE | {"prompt": "import os", "stream": False}
        url = f"{stack.base_url}/v1/completions"
        async with session.post(url, json=body) as reply:
            calm = await reply.json()
        stack.kill("scheduler")
        asking = asyncio.create_task(session.post(url, json=body).__aenter__())
        await asyncio.to_thread(stack.start, "scheduler")
        async with await asking as reply:
            assert (reply.status, (await reply.json())["choices"]) == (200, calm["choices"])
