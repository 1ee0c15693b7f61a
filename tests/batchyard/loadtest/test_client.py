import asyncio
import contextlib

import pytest

from batchyard.errors import ConfigError
from batchyard.loadtest.client import Client, parse_url

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"


class RawServer:
    """Says what it is told on each connection, request by request."""

    def __init__(self, *connections):
        self._scripts = list(connections)
        self.requests = []
        self.connections = 0
        self._tasks = []

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_):
        self._server.close()
        await asyncio.gather(*self._tasks)

    async def _serve(self, reader, writer):
        self.connections += 1
        self._tasks.append(asyncio.current_task())
        for words in self._scripts.pop(0):
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except (asyncio.IncompleteReadError, ConnectionError):
                break
            self.requests.append(head)
            writer.write(words)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def ask(server, count=1, **options):
    client = Client(parse_url(server.url), options.pop("key", None), options.pop("timeout_s", 5))
    try:
        return [await client.get("/v1/models") for _ in range(count)]
    finally:
        client.close()


async def test_a_connection_is_used_again():
    async with RawServer([HEAD + b"ab", HEAD + b"cd"]) as server:
        exchanges = await ask(server, 2, key="secret")
        assert [exchange.body for exchange in exchanges] == [b"ab", b"cd"]
        assert server.connections == 1
        assert b"Authorization: Bearer secret\r\n" in server.requests[0]


async def test_a_connection_that_closes_as_we_send_is_no_error():
    async with RawServer([HEAD + b"ab", b""], [HEAD + b"cd"]) as server:
        exchanges = await ask(server, 2)
        assert [(exchange.body, exchange.error) for exchange in exchanges] == [(b"ab", None), (b"cd", None)]


async def test_a_server_that_says_close_gets_a_new_connection():
    closing = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nab"
    async with RawServer([closing], [closing]) as server:
        assert [exchange.body for exchange in await ask(server, 2)] == [b"ab", b"ab"]
        assert server.connections == 2


async def test_chunks():
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: b\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
    async with RawServer([chunked]) as server:
        (exchange,) = await ask(server)
        assert (exchange.body, exchange.headers["x-a"], exchange.error) == (b"abc", "b", None)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (HEAD + b"a", "closed the connection"),
        (b"SSH-2.0 hello\r\n\r\n", "not HTTP"),
        (b"", "closed the connection"),
    ],
)
async def test_broken_answers(words, problem):
    async with RawServer([words]) as server:
        (exchange,) = await ask(server)
        assert problem in exchange.error


async def test_timeout():
    async with RawServer([HEAD, b""]) as server:
        (exchange,) = await ask(server, timeout_s=0.05)
        assert "within 0.05 s" in exchange.error


async def test_nobody_there():
    async with RawServer() as server:
        pass
    (exchange,) = await ask(server)
    assert (exchange.status, exchange.error) == (0, "connection refused")


@pytest.mark.parametrize(
    ("url", "host", "port", "path"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1", 8000, ""),
        ("http://[::1]:8000/v1/", "::1", 8000, ""),
        ("example.org/proxy/v1", "example.org", 80, "/proxy"),
        ("https://example.org", "example.org", 443, ""),
    ],
)
def test_urls(url, host, port, path):
    address = parse_url(url)
    assert (address.host, address.port, address.path) == (host, port, path)
    assert (address.tls is not None) == url.startswith("https")


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://x:99999", "http://x:y"])
def test_urls_that_are_none(url):
    with pytest.raises(ConfigError, match="--url"):
        parse_url(url)


def test_ipv6_in_the_host_header():
    assert parse_url("http://[::1]:80").netloc == "[::1]:80"
