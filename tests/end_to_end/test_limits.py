"""A key's limits, over the real processes."""

import asyncio
import os
import subprocess
import sys
import time

import openai
import pytest

from tests.end_to_end.stack import Stack

LIMIT = 2000
STREAMS = 64
SECONDS = 4


def keys(path, *arguments):
    """`batchyard keys`, and what it prints."""
    command = [sys.executable, "-m", "batchyard.cli", "keys", *arguments, "--api-keys", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ).stdout.strip()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("keys") / "keys.json"


@pytest.fixture(scope="module")
def key(path):
    return keys(path, "add", "alice", "--tokens-per-minute", str(LIMIT), "--weight", "2")


@pytest.fixture(scope="module")
def gateway(server, path, key, tmp_path_factory):
    """One more gateway on the same scheduler: this one wants keys."""
    arguments = ("--scheduler-address", server.scheduler_address, "--api-keys", str(path))
    stack = Stack(tmp_path_factory.mktemp("gateway"), gateway=arguments)
    stack.start("gateway")
    try:
        stack.wait_ready()
        yield stack
    finally:
        stack.__exit__()


async def tokens_of_stream(client, end):
    """Asks again and again until `end`, whatever a refusal says. Tokens used."""
    used = 0
    while time.monotonic() < end:
        try:
            stream = await client.completions.create(
                model="demo",
                prompt="import os\n",
                max_tokens=40,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"priority": 1, "timeout": 60},
            )
        except openai.RateLimitError as error:
            await asyncio.sleep(min(0.1, float(error.response.headers["retry-after"])))
            continue
        async for chunk in stream:
            if chunk.usage:
                used += chunk.usage.total_tokens
    return used


async def test_many_streams_at_once_stay_within_the_minute(gateway, key):
    base_url = f"{gateway.base_url}/v1"
    async with openai.AsyncOpenAI(base_url=base_url, api_key=key, max_retries=0) as client:
        end = time.monotonic() + SECONDS
        used = sum(await asyncio.gather(*(tokens_of_stream(client, end) for _ in range(STREAMS))))
    print(f"{used} tokens in {SECONDS} s and a little, of {LIMIT} a minute")
    # What no request fits into any more is less than one request.
    assert LIMIT - 50 < used <= LIMIT


def test_a_revoked_key_opens_nothing_any_more(gateway, path):
    key = keys(path, "add", "bob")
    with openai.OpenAI(base_url=f"{gateway.base_url}/v1", api_key=key, max_retries=0) as client:
        until(lambda: opens(client))
        assert client.completions.create(model="demo", prompt="import os\n", max_tokens=2).choices
        keys(path, "revoke", "bob")
        until(lambda: not opens(client))
    log = gateway.log
    assert "bob" in log
    assert key not in log


def opens(client):
    try:
        return bool(client.models.list().data)
    except openai.AuthenticationError:
        return False


def until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
