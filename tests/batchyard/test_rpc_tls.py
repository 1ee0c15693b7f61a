"""Mutual TLS between our processes: who is let in, and who is trusted."""

import asyncio
import dataclasses
from pathlib import Path

import grpc
import pytest

from batchyard.errors import AddressInUse
from batchyard.rpc import RpcServer, connect
from batchyard.tls import TlsFiles
from protos.inference_pb2 import ModelsRequest
from protos.inference_pb2_grpc import InferenceStub
from tests.batchyard.test_rpc import models, served
from tests.certificates import YESTERDAY, Authority

DEADLINE_S = 20


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def asked(address: str, tls: TlsFiles | None) -> str:
    """The answer, or the status that came instead."""
    async with asyncio.timeout(DEADLINE_S), connect(address, tls) as channel:
        try:
            answer = await InferenceStub(channel).Models(ModelsRequest())
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return str(answer.models[0].id)


async def test_members_reach_each_other(ca):
    async with served("127.0.0.1:0", tls=ca.issue("server")) as server:
        assert await asked(server.address, ca.issue("client")) == "m"


async def test_nobody_else_is_let_in(ca, tmp_path):
    async with served("127.0.0.1:0", tls=ca.issue("server")) as server:
        stranger = dataclasses.replace(Authority(tmp_path, "stranger").issue("mallory"), ca_certs=ca.file)
        assert await asked(server.address, stranger) == "UNAVAILABLE"
        assert await asked(server.address, None) == "UNAVAILABLE"
        assert await asked(server.address, ca.issue("late", ends=YESTERDAY)) == "UNAVAILABLE"


async def test_a_stranger_is_not_trusted(ca, tmp_path):
    stranger = Authority(tmp_path, "stranger").issue("mallory")
    async with served("127.0.0.1:0", tls=dataclasses.replace(stranger, ca_certs=None)) as server:
        assert await asked(server.address, ca.issue("client")) == "UNAVAILABLE"
    async with served("127.0.0.1:0") as server:
        assert await asked(server.address, ca.issue("client")) == "UNAVAILABLE"


async def test_a_certificate_is_for_its_address_or_for_the_name_agreed(ca):
    shared = ca.issue("shared", "batchyard.internal")
    async with served("127.0.0.1:0", tls=shared) as server:
        assert await asked(server.address, shared) == "UNAVAILABLE"
        named = dataclasses.replace(shared, peer_name="batchyard.internal")
        assert await asked(server.address, named) == "m"


async def test_without_authorities_anybody_may_ask_over_tls(ca):
    """As the public gRPC API is served."""
    files = dataclasses.replace(ca.issue("server"), ca_certs=None)
    async with served("127.0.0.1:0", tls=files) as server:
        credentials = grpc.ssl_channel_credentials(ca.file.read_bytes())
        async with grpc.aio.secure_channel(server.address, credentials) as channel:
            answer = await InferenceStub(channel).Models(ModelsRequest(), timeout=DEADLINE_S)
            assert answer.models[0].id == "m"


async def test_a_unix_socket_stays_plain(ca, tmp_path):
    files = ca.issue()
    async with served(f"unix:{tmp_path}/s", tls=files) as server:
        assert await models(server.address) == "m"
        assert await asked(server.address, files) == "m"


async def test_renewed_files_count_from_the_next_connection_on(ca, tmp_path):
    """Even where the authority is another one, which the certificate alone would not show."""
    before = ca.issue("before")
    async with served("127.0.0.1:0", tls=ca.issue("server")) as server:
        assert await asked(server.address, before) == "m"
        other = Authority(tmp_path, "ca")
        other.issue("server")
        after = other.issue("after")
        assert await asked(server.address, after) == "m"
        assert await asked(server.address, before) == "UNAVAILABLE"


async def test_a_connection_outlives_the_renewal_of_its_certificate(ca):
    files = ca.issue("server")
    async with served("127.0.0.1:0", tls=files) as server, connect(server.address, files) as channel:
        stub = InferenceStub(channel)
        for _ in range(3):
            assert (await stub.Models(ModelsRequest(), timeout=DEADLINE_S)).models[0].id == "m"
            ca.issue("server")


async def test_an_address_in_use_is_said_with_tls_too(ca):
    async with served("127.0.0.1:0", tls=ca.issue()) as server:
        with pytest.raises(AddressInUse):
            await RpcServer(server.address, tls=ca.issue()).start()
