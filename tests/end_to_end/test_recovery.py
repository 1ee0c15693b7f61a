"""A worker or a scheduler that dies: what the client sees."""

import asyncio
import json
import signal
import time

import aiohttp

from tests.end_to_end.stack import Stack

BODY = {"model": "demo", "prompt": "import os", "max_tokens": 200, "ignore_eos": True, "temperature": 0}


async def ask(session, stack):
    async with session.post(f"{stack.base_url}/v1/completions", json=BODY) as reply:
        return reply.status, await reply.json()


async def texts(reply):
    """The text of each event of a stream; it must end as it should."""
    async for line in reply.content:
        if line.startswith(b"data: {"):
            yield json.loads(line.removeprefix(b"data: "))["choices"][0]["text"]
        elif line.startswith(b"data: [DONE]"):
            return
    raise AssertionError("the stream broke off")


async def test_a_stream_outlives_its_worker_and_requests_outlive_the_scheduler(tmp_path):
    stack = Stack(tmp_path)
    await asyncio.to_thread(stack.__enter__)
    try:
        async with asyncio.timeout(120), aiohttp.ClientSession() as session:
            status, calm = await ask(session, stack)
            assert status == 200
            async with session.post(
                f"{stack.base_url}/v1/completions", json=BODY | {"stream": True}
            ) as reply:
                streamed = []
                async for text in texts(reply):
                    streamed.append(text)
                    if len(streamed) == 20:
                        stack.kill("worker")
                        await asyncio.to_thread(stack.start, "worker")
            assert "".join(streamed) == calm["choices"][0]["text"]
            await asyncio.to_thread(stack.wait_ready)
            assert (await ask(session, stack))[1]["choices"] == calm["choices"]

            stack.kill("scheduler")
            status, answer = await ask(session, stack)
            assert (status, answer["error"]["type"]) == (503, "service_unavailable_error")
            await asyncio.to_thread(stack.start, "scheduler")
            await asyncio.to_thread(stack.wait_ready)
            status, answer = await ask(session, stack)
            assert (status, answer["choices"]) == (200, calm["choices"])
    finally:
        await asyncio.to_thread(stack.__exit__)


async def test_a_worker_that_stands_still_is_noticed_in_about_a_second(tmp_path):
    """And taken on again once it goes on: it waits a moment, but the text is the same."""
    stack = Stack(tmp_path)
    await asyncio.to_thread(stack.__enter__)
    try:
        async with asyncio.timeout(120), aiohttp.ClientSession() as session:
            calm = (await ask(session, stack))[1]["choices"][0]["text"]
            await stack.idle()
            async with session.post(
                f"{stack.base_url}/v1/completions", json=BODY | {"stream": True}
            ) as reply:
                streamed = []
                async for text in texts(reply):
                    streamed.append(text)
                    if len(streamed) == 20:
                        stack.processes["worker"].send_signal(signal.SIGSTOP)
                        stopped_at = time.monotonic()
                        while (await stack.describe()).workers[0].connected:
                            await asyncio.sleep(0.02)
                        noticed_in = time.monotonic() - stopped_at
                        stack.processes["worker"].send_signal(signal.SIGCONT)
            assert "".join(streamed) == calm
            assert 0.9 < noticed_in < 3
            await stack.idle()
    finally:
        await asyncio.to_thread(stack.__exit__)
