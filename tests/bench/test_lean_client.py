"""The client of thousands of requests, on a server that answers by the book."""

import pytest
from aiohttp import web

from bench.lean_client import Client, completion_body


async def complete(request):
    body = await request.json()
    if body["prompt"] == "no":
        return web.json_response({"error": {}}, status=429, headers={"Retry-After": "7"})
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(body["max_tokens"]):
        await response.write(b'data: {"choices": []}\n\n')
    if body["prompt"] != "broken":
        await response.write(b"data: [DONE]\n\n")
    return response


@pytest.fixture
async def client():
    app = web.Application()
    app.router.add_post("/v1/completions", complete)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    client = Client("127.0.0.1", runner.addresses[0][1])
    yield client
    client.close()
    await runner.cleanup()


async def test_one_connection_asks_again_and_again(client):
    for prompt, status, retry_after, broken in (
        ("yes", 200, 0.0, False),
        ("no", 429, 7.0, False),
        ("broken", 200, 0.0, True),
        ("yes", 200, 0.0, False),
    ):
        reply = await client.ask("name", completion_body(prompt, 3))
        assert (reply.status, reply.retry_after, reply.broken) == (status, retry_after, broken)
        assert reply.sent < reply.first <= reply.last


async def test_nobody_there():
    reply = await Client("127.0.0.1", 1).ask("name", completion_body("hi", 1))
    assert reply.status == 0
