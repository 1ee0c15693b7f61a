import asyncio
import dataclasses
import json
import shlex

import pytest

from batchyard.config import ServeSettings
from batchyard.readiness import answers_ready, reachable, ready_line
from tests.certificates import Authority


class TestReadyLine:
    def test_demo(self):
        assert ready_line(ServeSettings()) == (
            "Batchyard is ready: http://127.0.0.1:8000 (model demo)  "
            "console: http://127.0.0.1:8000/console  try: "
            "curl -s http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' "
            '-d \'{"model":"demo","messages":[{"role":"user","content":"What does os.path.join do?"}]}\''
        )

    def test_key(self):
        line = ready_line(ServeSettings(api_key="hush"))
        assert '-H "Authorization: Bearer $BATCHYARD_API_KEY" -d' in line
        assert "hush" not in line

    def test_addresses(self):
        assert "http://127.0.0.1:1/v1" in ready_line(ServeSettings(host="0.0.0.0", port=1))
        assert "http://[::1]:1/v1" in ready_line(ServeSettings(host="::", port=1))

    def test_tls(self):
        assert "https://127.0.0.1:8000/v1" in ready_line(ServeSettings(ssl_certfile="c", ssl_keyfile="k"))

    def test_any_name_can_be_pasted_into_a_shell(self):
        name = 'it\'s "mine" $HOME'
        words = shlex.split(ready_line(ServeSettings(served_model_name=name)).split("try: ")[1])
        assert json.loads(words[-1])["model"] == name


@pytest.mark.parametrize(
    ("answer", "ready"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", True),
        (b"HTTP/1.1 503 No\r\n\r\n", False),
        (b"", False),
        (b"200\n", False),
    ],
)
async def test_answers_ready(answer, ready):
    asked = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert await answers_ready("127.0.0.1", port) is ready
    assert asked[0].startswith(b"GET /ready HTTP/1.1\r\n")
    assert not await answers_ready("127.0.0.1", port)


@pytest.mark.parametrize("clients", [False, True])
async def test_answers_ready_over_tls(tmp_path, clients):
    files = Authority(tmp_path).issue("us", "example.org")
    if not clients:
        files = dataclasses.replace(files, ca_certs=None)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=files.server_context()) as server:
        port = server.sockets[0].getsockname()[1]
        assert await answers_ready("127.0.0.1", port, files.loopback_context())
        assert not await answers_ready("127.0.0.1", port)


def test_reachable():
    assert [reachable(host) for host in ("0.0.0.0", "::", "10.1.2.3")] == ["127.0.0.1", "::1", "10.1.2.3"]
