import asyncio
import os

import pytest

from batchyard.loadtest.client import Client, parse_url
from tests.batchyard.loadtest.scripted_server import ScriptedServer


@pytest.fixture
def server():
    server = ScriptedServer()
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def client(server):
    client = Client(parse_url(server.url), None, timeout_s=10)
    yield client
    client.close()


@pytest.fixture
def stop():
    return asyncio.Event()


@pytest.fixture
def no_settings(monkeypatch):
    """Nothing of ours in the environment."""
    for name in [name for name in os.environ if name.startswith("BATCHYARD_") or name == "OPENAI_API_KEY"]:
        monkeypatch.delenv(name)
