"""Sockets, and the end of a server."""

import asyncio
import json
import socket

import httpx
import pytest

from batchyard.errors import AddressInUse, ConfigError
from gateway.server import HttpServer, bind
from tests.gateway.api_fakes import FakeGenerator, make_app, on_a_port

BODY = {"model": "demo", "prompt": "hi"}
DEADLINE_S = 10


def test_a_port_in_use_is_said_in_one_line():
    with bind("127.0.0.1", 0, share_port=False) as first:
        first.listen()
        port = first.getsockname()[1]
        with pytest.raises(AddressInUse, match=f"port {port} on 127.0.0.1 is in use") as caught:
            bind("127.0.0.1", port, share_port=False)
    assert "\n" not in str(caught.value)


def test_a_port_can_be_shared():
    with bind("127.0.0.1", 0, share_port=True) as first:
        first.listen()
        port = first.getsockname()[1]
        with bind("127.0.0.1", port, share_port=True) as second:
            assert second.getsockname()[1] == port
        with pytest.raises(AddressInUse):
            bind("127.0.0.1", port, share_port=False)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "x" * 300, "192.0.2.1"])
def test_hosts_that_are_not_ours(host):
    with pytest.raises(ConfigError):
        bind(host, 0, share_port=False)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_an_ipv6_url():
    try:
        bound = bind("::1", 0, share_port=False)
    except ConfigError:
        pytest.skip("no IPv6 address here")
    with bound:
        assert HttpServer(make_app(), bound, 1.0).url.startswith("http://[::1]:")


async def test_an_answer_under_way_may_finish():
    generator = FakeGenerator(words=["word"] * 500)
    async with httpx.AsyncClient() as client:
        async with on_a_port(make_app(generator)) as url:
            body = BODY | {"stream": True, "max_tokens": None}
            request = client.build_request("POST", f"{url}/v1/completions", json=body)
            response = await client.send(request, stream=True)
            reading = asyncio.create_task(response.aread())
        assert (await reading).endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("stream", [False, True])
async def test_what_takes_longer_than_the_grace_is_told_so(stream):
    generator = FakeGenerator(hangs_after=1)
    async with httpx.AsyncClient() as client, asyncio.timeout(DEADLINE_S):
        async with on_a_port(make_app(generator), grace_s=0) as url:
            asking = asyncio.create_task(client.post(f"{url}/v1/completions", json=BODY | {"stream": stream}))
            await generator.hanging.wait()
        assert generator.running == 0
        response = await asking
    *_, last = response.text.strip().split("\n\n")
    assert response.status_code == (200 if stream else 503)
    assert "shutting down" in json.loads(last.removeprefix("data: "))["error"]["message"]
