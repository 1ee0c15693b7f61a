"""REST over TLS: the whole way from the client's handshake to its hanging up."""

import asyncio
import contextlib
import dataclasses
import json
import ssl
from pathlib import Path

import httpx
import pytest

from batchyard.tls import TlsFiles
from tests.certificates import Authority
from tests.gateway.api_fakes import FakeGenerator, make_app, on_a_port
from tests.gateway.test_connection import WHOLE, Flood

BODY = {"model": "demo", "prompt": "hi"}
DEADLINE_S = 20


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def files(ca: Authority) -> TlsFiles:
    return dataclasses.replace(ca.issue("server"), ca_certs=None)


def trusting(ca: Authority, shown: TlsFiles | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(ca.file))
    if shown:
        context.load_cert_chain(shown.certfile, shown.keyfile)
    return context


@pytest.mark.parametrize("stream", [False, True])
async def test_requests_are_answered(ca, files, stream):
    async with on_a_port(make_app(), tls=files) as url, httpx.AsyncClient(verify=trusting(ca)) as client:
        assert url.startswith("https://")
        for _ in range(2):
            response = await client.post(f"{url}/v1/completions", json=BODY | {"stream": stream})
            assert response.status_code == 200
            assert ("data: [DONE]" in response.text) is stream


async def test_a_client_that_hangs_up_cancels_its_request(ca, files):
    generator = FakeGenerator(hangs_after=1)
    async with on_a_port(make_app(generator), tls=files) as url, asyncio.timeout(DEADLINE_S):
        port = int(url.rsplit(":", 1)[1])
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting(ca))
        writer.write(WHOLE)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()
        await generator.closed.wait()


async def test_a_client_that_does_not_read_is_cut_off(ca, files):
    flood = Flood()
    app = make_app(flood)
    async with on_a_port(app, timeout_s=0.2, tls=files) as url, asyncio.timeout(DEADLINE_S):
        port = int(url.rsplit(":", 1)[1])
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting(ca), limit=1024)
        writer.write(WHOLE)
        await flood.closed.wait()
        writer.transport.abort()
    assert flood.given < 20_000


async def test_at_the_end_answers_may_finish_and_idle_clients_hold_up_nobody(ca, files):
    generator = FakeGenerator(words=["word"] * 500)
    async with httpx.AsyncClient(verify=trusting(ca)) as client, asyncio.timeout(DEADLINE_S):
        async with on_a_port(make_app(generator), grace_s=60, tls=files) as url:
            assert (await client.get(f"{url}/health")).status_code == 200
            body = BODY | {"stream": True, "max_tokens": None}
            request = client.build_request("POST", f"{url}/v1/completions", json=body)
            response = await client.send(request, stream=True)
            reading = asyncio.create_task(response.aread())
        assert (await reading).endswith(b"data: [DONE]\n\n")


async def test_with_authorities_only_their_clients_are_let_in(ca, tmp_path):
    stranger = Authority(tmp_path, "stranger").issue("mallory")
    async with on_a_port(make_app(), tls=ca.issue("server")) as url:
        async with httpx.AsyncClient(verify=trusting(ca, ca.issue("client"))) as client:
            assert (await client.get(f"{url}/health")).status_code == 200
        for shown in (None, stranger):
            async with httpx.AsyncClient(verify=trusting(ca, shown)) as client:
                with pytest.raises(httpx.TransportError):
                    await client.get(f"{url}/health")


async def test_a_renewed_certificate_is_shown_from_the_next_connection_on(ca, tmp_path):
    async with on_a_port(make_app(), tls=ca.issue("server")) as url:
        before = ca.issue("before")
        async with httpx.AsyncClient(verify=trusting(ca, before)) as staying:
            assert (await staying.get(f"{url}/health")).status_code == 200
            other = Authority(tmp_path, "ca")
            other.issue("server")
            assert (await staying.get(f"{url}/health")).status_code == 200
            async with httpx.AsyncClient(verify=trusting(other, other.issue("after"))) as client:
                assert (await client.get(f"{url}/health")).status_code == 200
            async with httpx.AsyncClient(verify=trusting(other, before)) as client:
                with pytest.raises(httpx.TransportError):
                    await client.get(f"{url}/health")


async def test_who_does_not_speak_tls_harms_nobody(ca, files, caplog):
    async with on_a_port(make_app(), tls=files) as url, asyncio.timeout(DEADLINE_S):
        port = int(url.rsplit(":", 1)[1])
        for words in (WHOLE, b"\x16\x03\x01\xff\xff" + b"x" * 100, b"", json.dumps(BODY).encode()):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(words)
            writer.write_eof()
            with contextlib.suppress(ConnectionResetError):
                assert b"200" not in await reader.read()
            writer.close()
        async with httpx.AsyncClient(verify=trusting(ca)) as client:
            assert (await client.get(f"{url}/health")).status_code == 200
    assert not caplog.records or all(record.name == "httpx" for record in caplog.records)
