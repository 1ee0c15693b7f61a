"""A client that hangs up, on a real socket: its generation ends at once."""

import asyncio
import json
from urllib.parse import urlsplit

import pytest
import structlog

from gateway.metrics import Metrics
from tests.gateway.api_fakes import FakeGenerator, make_app, on_a_port
from tests.gateway.test_metrics import samples

DEADLINE_S = 10
BODIES = [
    ("/v1/completions", {"model": "demo", "prompt": "hi"}),
    ("/v1/chat/completions", {"model": "demo", "messages": [{"role": "user", "content": "hi"}], "n": 3}),
]


async def send(url: str, path: str, body: dict) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    await writer.drain()
    return reader, writer


@pytest.mark.parametrize(("path", "body"), BODIES)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("pieces", [0, 2])
async def test_hanging_up_cancels(path, body, stream, pieces):
    generator, metrics = FakeGenerator(hangs_after=pieces), Metrics()
    with structlog.testing.capture_logs() as lines:
        async with on_a_port(make_app(generator, metrics=metrics)) as url, asyncio.timeout(DEADLINE_S):
            reader, writer = await send(url, path, body | {"stream": stream})
            await generator.hanging.wait()
            if stream and pieces:
                assert b"200 OK" in await reader.readline()
            writer.close()
            await generator.closed.wait()
    assert generator.running == 0
    assert [line["status"] for line in lines if line["event"] == "request"] == [499]
    assert samples(metrics.exposition().decode())["batchyard_gateway_requests_in_flight", ""] == 0


async def test_others_go_on():
    generator = FakeGenerator(hangs_after=1)
    path, body = BODIES[0]
    async with on_a_port(make_app(generator), grace_s=0) as url, asyncio.timeout(DEADLINE_S):
        _, leaving = await send(url, path, body)
        _, staying = await send(url, path, body)
        while generator.running < 2:
            await asyncio.sleep(0)
        leaving.close()
        while generator.running > 1:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert generator.running == 1
        staying.close()
        await generator.closed.wait()


async def test_a_connection_is_used_again():
    path, body = BODIES[0]
    async with on_a_port(make_app()) as url, asyncio.timeout(DEADLINE_S):
        reader, writer = await send(url, path, body)
        for _ in range(3):
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            assert json.loads(await reader.readexactly(length))["choices"][0]["text"] == "Hello wörld!"
            content = json.dumps(body).encode()
            writer.write(
                f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(content)}\r\n\r\n".encode()
                + content
            )
        writer.close()
