import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from batchyard.errors import AddressInUse
from batchyard.rpc import Keepalive, RpcServer, connect
from protos.inference_pb2 import Model, ModelsRequest, ModelsResponse
from protos.inference_pb2_grpc import InferenceServicer, InferenceStub, add_InferenceServicer_to_server

SERVICE = "batchyard.v1.Inference"


class Inference(InferenceServicer):
    def __init__(self, name: str = "m") -> None:
        self.name = name

    async def Models(self, request: ModelsRequest, context: object) -> ModelsResponse:
        return ModelsResponse(models=[Model(id=self.name)])


@contextlib.asynccontextmanager
async def served(address: str, name: str = "m", **options: Any) -> AsyncIterator[RpcServer]:
    server = RpcServer(address, **options)
    server.add(add_InferenceServicer_to_server, Inference(name), SERVICE)
    await server.start()
    yield server
    await server.stop(0)
    await server.wait()


async def models(address: str, timeout_s: float = 10) -> str:
    async with connect(address) as channel:
        answer = await InferenceStub(channel).Models(ModelsRequest(), wait_for_ready=True, timeout=timeout_s)
        return answer.models[0].id


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_serves(kind, tmp_path):
    address = "127.0.0.1:0" if kind == "tcp" else f"unix:{tmp_path}/s"
    async with served(address) as server:
        if kind == "tcp":
            assert int(server.address.rsplit(":", 1)[1]) > 0
        assert await models(server.address) == "m"


async def test_health(tmp_path):
    async with served(f"unix:{tmp_path}/s") as server, connect(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        async def status(service: str) -> str:
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
            return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)

        assert [await status(name) for name in ("", SERVICE)] == ["NOT_SERVING"] * 2
        await server.set_serving(True)
        assert [await status(name) for name in ("", SERVICE)] == ["SERVING"] * 2
        await server.set_serving(False)
        assert await status(SERVICE) == "NOT_SERVING"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await status("unknown")
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND


async def test_reflection(tmp_path):
    async with served(f"unix:{tmp_path}/s") as server, connect(server.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        async for answer in stub.ServerReflectionInfo(iter([request])):
            names = {service.name for service in answer.list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"} <= names


async def test_messages_of_any_size(tmp_path):
    async with served(f"unix:{tmp_path}/s", name="x" * 20_000_000) as server:
        assert len(await models(server.address)) == 20_000_000


async def test_address_in_use(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(AddressInUse, match=f"^cannot serve gRPC on {address}: "):
            await RpcServer(address).start()


async def test_share_port():
    async with (
        served("127.0.0.1:0", "a", share_port=True) as first,
        served(first.address, "b", share_port=True) as second,
    ):
        assert second.address == first.address
        async with asyncio.timeout(10):
            seen = set()
            while seen != {"a", "b"}:
                seen.add(await models(first.address))


async def test_a_port_is_not_shared_unasked():
    async with served("127.0.0.1:0") as first:
        with pytest.raises(AddressInUse):
            await RpcServer(first.address).start()


async def test_starts_on_the_socket_file_of_a_process_that_was_killed(tmp_path):
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    assert path.exists()
    async with served(f"unix:{path}") as server:
        assert await models(server.address) == "m"


async def test_connects_to_a_server_that_starts_later(tmp_path):
    address = f"unix:{tmp_path}/s"
    asking = asyncio.create_task(models(address))
    await asyncio.sleep(0)
    async with served(address):
        assert await asking == "m"


async def test_ignores_proxies(monkeypatch, tmp_path):
    for name in ("http_proxy", "grpc_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with served("127.0.0.1:0") as server:
        assert await models(server.address) == "m"


class Line:
    """Passes bytes on between a client and a server, until it is cut: then both hear nothing more."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._cut = False
        self.over = asyncio.Event()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_unix_connection(self._server.removeprefix("unix:"))
        await asyncio.gather(self._pass(reader, far_writer), self._pass(far_reader, writer))
        for end in (writer, far_writer):
            with contextlib.suppress(ConnectionError):
                await end.wait_closed()
        self.over.set()

    def cut(self) -> None:
        self._cut = True

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                if not self._cut:
                    writer.write(data)
        writer.close()


async def test_a_peer_that_vanished_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr("batchyard.rpc.AMONG_US", Keepalive(after=300, within=200))
    async with served(f"unix:{tmp_path}/s") as server:
        line = Line(server.address)
        between = await asyncio.start_unix_server(line.accept, tmp_path / "line")
        async with connect(f"unix:{tmp_path}/line") as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            await watch.read()
            line.cut()
            with pytest.raises(grpc.aio.AioRpcError) as lost:
                await asyncio.wait_for(watch.read(), 10)
            assert lost.value.code() == grpc.StatusCode.UNAVAILABLE
        between.close()
        await asyncio.wait_for(line.over.wait(), 10)
