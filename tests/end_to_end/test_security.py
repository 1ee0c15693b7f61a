"""Everything over TLS, at the level of detail where most is said; and none of it is a secret."""

import asyncio
import contextlib
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import httpx
import pytest
from redis.asyncio import Redis

from batchyard.cli import COMMANDS
from batchyard.rpc import connect
from batchyard.settings import load, variable_of
from batchyard.tls import TlsFiles
from protos.inference_pb2 import GenerateRequest
from protos.inference_pb2_grpc import InferenceStub
from protos.step_pb2 import DescribeWorkerRequest
from protos.step_pb2_grpc import WorkerStub
from tests.certificates import Authority, api, internal
from tests.end_to_end.stack import Stack, free_port

KEY, WRONG_KEY, PASSWORD, TOKEN = "by-opensesame", "by-wrongsesame", "redissesame", "hf-sesame"
SECRET = "sesame"  # is in each of them
DEADLINE_S = 120


@asynccontextmanager
async def over_tls(port: int, files: TlsFiles) -> AsyncIterator[int]:
    """A port where what is served in the clear at `port` is served over TLS."""

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, upstream_writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.suppress(OSError):
            await asyncio.wait(
                [
                    asyncio.create_task(copy(reader, upstream_writer)),
                    asyncio.create_task(copy(upstream, writer)),
                ],
                return_when=asyncio.FIRST_COMPLETED,
            )
        for side in (writer, upstream_writer):
            side.close()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()

    server = await asyncio.start_server(relay, "127.0.0.1", 0, ssl=files.server_context())
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
async def redis_url(ca, redis_server) -> AsyncIterator[str]:
    """Redis behind TLS and a password."""
    async with Redis.from_url(redis_server.url) as client:
        await client.config_set("requirepass", PASSWORD)
    redis_server.url = redis_server.url.replace("redis://", f"redis://:{PASSWORD}@")
    async with over_tls(redis_server.port, TlsFiles(*_pair(ca.issue("redis")))) as port:
        yield f"rediss://:{PASSWORD}@127.0.0.1:{port}/0?ssl_ca_certs={ca.file}"


def _pair(files: TlsFiles) -> tuple[Path, Path]:
    return files.certfile, files.keyfile


def variables(settings: dict[str, str]) -> dict[str, str]:
    return {variable_of(name): value for name, value in settings.items()}


async def test_the_whole_chain_over_tls_shows_no_secret(tmp_path, ca, redis_server, redis_url, collector):
    collected, endpoint = collector
    member = ca.issue("member")
    env = variables(internal(member) | api(member) | {"api_key": KEY, "redis": redis_url, "otlp": endpoint})
    env |= variables({"log_level": "debug", "log_format": "json"}) | {"HF_TOKEN": TOKEN}
    ports = [free_port(), free_port()]
    flags = [["--metrics-port", str(port)] for port in ports]
    trusting = ssl.create_default_context(cafile=str(ca.file))
    stack = Stack(tmp_path, worker=flags[0], scheduler=flags[1], env=env, context=trusting, tcp=True)
    shown: list[str] = []
    await asyncio.to_thread(stack.__enter__)
    try:
        async with asyncio.timeout(DEADLINE_S):
            shown += await talk_rest(stack.base_url, trusting)
            shown += await talk_grpc(stack.grpc_address, ca)
            await only_members_are_let_in(stack, tmp_path, ca, member)
            await mirrored(redis_server.url)
            # In a thread, for Redis is reached through this one.
            await asyncio.to_thread(probes_work, stack, env)
            for port in ports:
                shown.append(await asyncio.to_thread(metrics, f"http://127.0.0.1:{port}/metrics"))
            shown.append(await asyncio.to_thread(metrics, f"{stack.base_url}/metrics", trusting))
            shown += command_lines({process.pid for process in stack.processes.values()})
    finally:
        await asyncio.to_thread(stack.__exit__)
    log = stack.log
    assert '"level": "debug"' in log
    assert "Redis is away" not in log
    assert "mirror_not_" not in log
    spans = [str(span) for _, span in collected.spans]
    assert any("chat/completions" in span for span in spans)
    for text in (*shown, log, *spans):
        assert SECRET not in text


async def talk_rest(base_url: str, trusting: ssl.SSLContext) -> list[str]:
    """Answers to those who may ask, and to those who may not."""
    body = {"model": "demo", "messages": [{"role": "user", "content": "What is json?"}], "max_tokens": 40}
    texts = []
    async with httpx.AsyncClient(base_url=base_url, verify=trusting, timeout=DEADLINE_S) as client:
        for key, changes, status in (
            (KEY, {}, 200),
            (WRONG_KEY, {}, 401),
            (KEY, {"temperature": -1}, 400),
            (KEY, {"model": "other"}, 404),
        ):
            headers = {"Authorization": f"Bearer {key}", "X-Api-Key": key, "Cookie": f"key={key}"}
            reply = await client.post("/v1/chat/completions", json=body | changes, headers=headers)
            assert reply.status_code == status, reply.text
            texts += [reply.text, str(reply.headers)]
    return texts


async def talk_grpc(address: str, ca: Authority) -> list[str]:
    credentials = grpc.ssl_channel_credentials(ca.file.read_bytes())
    async with grpc.aio.secure_channel(address, credentials) as channel:
        stub = InferenceStub(channel)
        request = GenerateRequest(model="demo", text="import ", max_tokens=3)
        call = stub.Generate(request, metadata=(("authorization", f"Bearer {KEY}"),))
        assert "".join([piece.text async for piece in call])
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Generate(request, metadata=(("authorization", f"Bearer {WRONG_KEY}"),)).read()
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
    return [str(refused.value)]


async def only_members_are_let_in(stack: Stack, folder: Path, ca: Authority, member: TlsFiles) -> None:
    stranger = Authority(folder, "stranger").issue("mallory")
    for tls, answers in ((member, True), (None, False), (stranger, False)):
        async with connect(stack.addresses["worker"], tls) as channel:
            asked = WorkerStub(channel).Describe(DescribeWorkerRequest(), timeout=10)
            if answers:
                assert (await asked).max_rows
            else:
                with pytest.raises(grpc.aio.AioRpcError, match="UNAVAILABLE"):
                    await asked


async def mirrored(url: str) -> None:
    """Returns when the scheduler has written to Redis."""
    async with Redis.from_url(url) as client:
        while not await client.keys("batchyard:prefix:*"):
            await asyncio.sleep(0.05)


def probes_work(stack: Stack, env: dict[str, str]) -> None:
    for address in (stack.addresses["worker"], stack.scheduler_address, f"{stack.base_url}/ready"):
        command = [sys.executable, "-m", "batchyard.probe", address]
        probe = subprocess.run(command, env=os.environ | env, capture_output=True, text=True, check=False)
        assert probe.returncode == 0, probe.stderr
    blind = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (blind.returncode, blind.stderr.count("\n")) == (1, 1)


def metrics(url: str, context: ssl.SSLContext | None = None) -> str:
    with urllib.request.urlopen(url, timeout=30, context=context) as reply:
        text = reply.read().decode()
    assert "batchyard_" in text
    return text


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_shows_no_secret(command, capsys):
    env = variables(
        {"api_key": KEY, "redis": f"redis://:{PASSWORD}@host", "api_keys": f"redis://:{PASSWORD}@h"}
    )
    with pytest.raises(SystemExit):
        load(COMMANDS[command].settings, ["--help"], env)
    text = capsys.readouterr().out
    assert "--log-level" in text
    assert SECRET not in text


def command_lines(pids: set[int]) -> list[str]:
    """Of the processes and of all that they started."""
    lines = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int(re.search(r"PPid:\s(\d+)", (folder / "status").read_text())[1])
            title = (folder / "comm").read_text() + (folder / "cmdline").read_bytes().decode()
            lines[int(folder.name)] = (parent, title)
    family, size = set(pids), 0
    while len(family) > size:
        size = len(family)
        family |= {pid for pid, (parent, _) in lines.items() if parent in family}
    assert size > len(pids)
    return [lines[pid][1] for pid in family]


@pytest.fixture
def short_tmp():
    """A path short enough for the names of sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        yield Path(name)


def test_serve_over_tls_is_ready_and_its_processes_show_no_secret(short_tmp, ca):
    files = ca.issue()
    port = free_port()
    flags = ["--port", str(port), "--grpc-port", "0", "--api-key", KEY, "--log-level", "debug"]
    for name, value in api(files, clients=True).items():
        flags += [f"--{name.replace('_', '-')}", value]
    process = subprocess.Popen(
        [sys.executable, "-m", "batchyard.cli", "serve", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(short_tmp), "HF_TOKEN": TOKEN},
    )
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if f"https://127.0.0.1:{port}" in line and "ready" in line:
                break
        else:
            pytest.fail("".join(lines))
        (run_dir,) = short_tmp.glob("batchyard-*")
        assert run_dir.stat().st_mode & 0o777 == 0o700
        context = ssl.create_default_context(cafile=str(ca.file))
        context.load_cert_chain(files.certfile, files.keyfile)
        body = json.dumps({"model": "demo", "prompt": "import", "max_tokens": 3}).encode()
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"https://127.0.0.1:{port}/v1/completions", body, headers)
        with urllib.request.urlopen(request, timeout=30, context=context) as reply:
            assert json.load(reply)["usage"]["completion_tokens"] == 3
        own, *children = command_lines({process.pid})
        assert SECRET not in "".join(title for title in (own, *children) if "lifeline" in title)
        assert any("lifeline" in title for title in children)
        process.send_signal(signal.SIGINT)
        lines.append(process.stdout.read())
        assert process.wait(timeout=30) == 0
        assert SECRET not in "".join(lines)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
