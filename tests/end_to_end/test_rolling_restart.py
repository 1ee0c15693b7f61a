"""Workers that are drained, restarted one after another, and added, under streams of all kinds."""

import asyncio
import json
import os
import signal
import sys
import time

import aiohttp
import pytest

from protos.scheduling_pb2 import Description
from tests.end_to_end.stack import Stack

KINDS = (
    {"temperature": 0},
    {"temperature": 0, "logprobs": 2},
    {"temperature": 0.9, "seed": 7, "top_p": 0.9},
    {"temperature": 1.1, "seed": 8, "presence_penalty": 0.5, "frequency_penalty": 0.3},
    {"temperature": 0.8, "seed": 9, "n": 2},
    {"temperature": 0.7, "seed": 10, "stop": ["zebra crossing"]},
)
PROMPTS = ("import os", "def read(path):", "The list type", "class Node:")
BODIES = [
    {"model": "demo", "prompt": prompt, "max_tokens": 220, "ignore_eos": True, "stream": True, **kind}
    for prompt in PROMPTS
    for kind in KINDS
]


class Answer:
    """What one stream has got: text and logprobs of each choice, how it ended, and the longest silence."""

    def __init__(self):
        self.text = {}
        self.logprobs = {}
        self.ends = {}
        self.silence = 0.0
        self.begun = asyncio.Event()

    async def take(self, reply):
        assert reply.status == 200, await reply.text()
        last = None
        async for line in reply.content:
            if line.startswith(b"data: {"):
                now = time.monotonic()
                self.silence = max(self.silence, now - (last or now))
                last = now
                for choice in json.loads(line.removeprefix(b"data: "))["choices"]:
                    self._add(choice)
            elif line.startswith(b"data: [DONE]"):
                return
        raise AssertionError("the stream broke off")

    def _add(self, choice):
        n = choice["index"]
        self.text[n] = self.text.get(n, "") + choice["text"]
        if choice.get("logprobs"):
            self.logprobs.setdefault(n, []).extend(choice["logprobs"]["tokens"])
        if choice["finish_reason"]:
            assert n not in self.ends
            self.ends[n] = choice["finish_reason"]
        if len(self.text[n]) > 40:
            self.begun.set()

    @property
    def told(self):
        return self.text, self.logprobs, self.ends


class Clients:
    """One for each body, which asks again and again until `enough`."""

    def __init__(self, stack):
        self.answers = [[Answer()] for _ in BODIES]
        self._stack = stack
        self._enough = asyncio.Event()

    async def __aenter__(self):
        self._session = aiohttp.ClientSession()
        self._asking = [
            asyncio.create_task(self._ask(body, mine))
            for body, mine in zip(BODIES, self.answers, strict=True)
        ]
        await asyncio.gather(*(mine[0].begun.wait() for mine in self.answers))
        return self

    async def _ask(self, body, mine):
        while True:
            async with self._session.post(f"{self._stack.base_url}/v1/completions", json=body) as reply:
                await mine[-1].take(reply)
            if self._enough.is_set():
                return
            mine.append(Answer())

    async def enough(self):
        """The last answers are awaited."""
        self._enough.set()
        await asyncio.gather(*self._asking)

    async def __aexit__(self, *_):
        for task in self._asking:
            task.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)
        await self._session.close()

    @property
    def silence(self):
        return max(answer.silence for mine in self.answers for answer in mine)

    def check(self, calm):
        for mine, expected in zip(self.answers, calm, strict=True):
            for answer in mine:
                assert answer.told == expected


async def until(stack, condition, seconds=30) -> Description:
    async with asyncio.timeout(seconds):
        while not condition(state := await stack.describe()):
            await asyncio.sleep(0.01)
    return state


def connected(state, name):
    return any(worker.connected for worker in state.workers if worker.worker_id == name)


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    worker = ["--max-num-batched-tokens", "512", "--num-gpu-blocks", "2000"]
    with Stack(tmp_path_factory.mktemp("rolling"), worker=worker, workers=2) as stack:
        yield stack


@pytest.fixture(scope="module")
def calm(stack):
    """What every stream says when nothing happens."""

    async def ask():
        async with asyncio.timeout(60), Clients(stack) as clients:
            await clients.enough()
        return [mine[0].told for mine in clients.answers]

    return asyncio.run(ask())


async def test_a_rolling_restart_of_all_workers_loses_nothing_and_changes_nothing(stack, calm):
    async with asyncio.timeout(120), Clients(stack) as clients:
        gone = []
        for name in stack.workers:
            start = time.monotonic()
            process = stack.processes[name]
            process.send_signal(signal.SIGTERM)
            await until(stack, lambda state, name=name: not connected(state, name))
            gone.append(time.monotonic() - start)
            assert await asyncio.to_thread(process.wait, 30) == 0
            await asyncio.to_thread(stack.start, name)
            await until(stack, lambda state, name=name: connected(state, name))
        await clients.enough()
    clients.check(calm)
    assert max(gone) < 1.0
    await stack.idle()


async def test_a_worker_that_is_drained_by_command_and_taken_on_again(stack, calm):
    async def drain(*arguments):
        command = [sys.executable, "-m", "batchyard.cli", "drain", *arguments]
        process = await asyncio.create_subprocess_exec(
            *command,
            env={**os.environ, "BATCHYARD_SCHEDULER_ADDRESS": stack.scheduler_address},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output = (await process.communicate())[0].decode()
        return process.returncode, output

    async with asyncio.timeout(120), Clients(stack) as clients:
        code, output = await drain("worker-1")
        assert (code, "worker-1 is drained" in output) == (0, True), output
        assert not connected(await stack.describe(), "worker-1")
        await clients.enough()
    clients.check(calm)
    assert not connected(await stack.describe(), "worker-1")
    code, output = await drain("nobody")
    assert (code, "'nobody' is no worker (there are: " in output) == (2, True), output
    assert (await drain("worker-1", "--undo"))[0] == 0
    await until(stack, lambda state: connected(state, "worker-1"))
    await stack.idle()
