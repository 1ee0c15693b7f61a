"""The whole process against a scheduler: from its start, before anybody is there, to SIGTERM."""

import asyncio
import os
import signal
import socket
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
import openai
import pytest
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from redis.asyncio import Redis

from batchyard.config import GatewaySettings
from batchyard.errors import AddressInUse, ConfigError, ModelError
from batchyard.rpc import connect
from gateway.keys.records import record_for
from gateway.keys.stores import RedisKeys
from gateway.main import run
from gateway.server import bind
from protos import inference_pb2 as pb
from protos.inference_pb2_grpc import InferenceStub
from protos.scheduling_pb2 import FINISH_REASON_STOP, Submit
from tests.gateway import tiny_tokenizers as tiny
from tests.gateway.fake_scheduler import FakeScheduler, ending, serving

DEADLINE_S = 20


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def settings(tmp_path: Path) -> GatewaySettings:
    model = tmp_path / "model"
    model.mkdir()
    backend = tiny.byte_level_backend()
    tiny.write_folder(model, backend, tiny.BEGIN, tiny.END, chat_template=tiny.CHAT_TEMPLATE)
    return GatewaySettings(
        model=str(model),
        served_model_name="tiny",
        port=free_port(),
        grpc_port=free_port(),
        scheduler_address=(f"unix:{tmp_path}/scheduler.sock",),
    )


@pytest.fixture
def scheduler() -> FakeScheduler:
    """Answers every request with one word."""
    scheduler = FakeScheduler()
    ids = tiny.byte_level().encode("dog", add_special_tokens=False)

    def answer(submit: Submit) -> None:
        scheduler.send(ending(submit.id, [*ids, *tiny.byte_level().eos_ids], FINISH_REASON_STOP))

    scheduler.on_submit = answer
    return scheduler


@asynccontextmanager
async def running(settings: GatewaySettings):
    """The process's `run`; SIGTERM ends it."""
    process = asyncio.create_task(run(settings))
    url = f"http://127.0.0.1:{settings.port}"
    async with asyncio.timeout(DEADLINE_S), httpx.AsyncClient(base_url=url) as client:
        await until(client, "/health", 200)
        yield client
        os.kill(os.getpid(), signal.SIGTERM)
        await process


async def until(client: httpx.AsyncClient, path: str, status: int) -> httpx.Response:
    while True:
        try:
            response = await client.get(path)
            if response.status_code == status:
                return response
        except httpx.ConnectError:
            pass
        await asyncio.sleep(0.01)


async def test_from_start_to_end(settings, scheduler, tmp_path):
    async with running(settings) as client:
        refused = await client.get("/ready")
        assert refused.status_code == 503
        assert "scheduler" in refused.json()["error"]["message"]
        async with serving(scheduler, tmp_path / "scheduler.sock"):
            await until(client, "/ready", 200)
            await ask_rest(client)
            await ask_grpc(settings)
            assert scheduler.submits[0].request_id == "mine"


async def ask_rest(client: httpx.AsyncClient) -> None:
    async with openai.AsyncOpenAI(base_url=f"{client.base_url}/v1", api_key="none") as api:
        answer = await api.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "Which animal is lazy?"}],
            extra_headers={"X-Request-Id": "mine"},
        )
        assert answer.choices[0].message.content == "dog"
        echoed = await api.completions.create(model="tiny", prompt="The lazy ", echo=True)
        assert echoed.choices[0].text == "The lazy dog"
        with pytest.raises(openai.BadRequestError, match="maximum context length is 64"):
            await api.completions.create(model="tiny", prompt="x", max_tokens=64)


async def ask_grpc(settings: GatewaySettings) -> None:
    async with connect(f"127.0.0.1:{settings.grpc_port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        while True:
            status = (await health.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True)).status
            if status == health_pb2.HealthCheckResponse.SERVING:
                break
            await asyncio.sleep(0.01)
        call = InferenceStub(channel).Generate(pb.GenerateRequest(model="tiny", text="The lazy "))
        assert "".join([response.text async for response in call]) == "dog"


async def test_without_grpc(settings):
    port = settings.grpc_port
    async with running(settings.model_copy(update={"grpc_port": 0})):
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)


async def test_an_open_server_says_so(settings):
    with structlog.testing.capture_logs() as lines:
        async with running(settings):
            pass
    assert [line["event"] for line in lines if line["log_level"] == "warning"] == [
        "open to everybody: there are no API keys (--api-keys, --api-key)"
    ]


async def test_keys_and_limits_over_redis(settings, scheduler, redis_server, tmp_path):
    store = RedisKeys(redis_server.url)
    await store.add(record_for("secret", datetime(2026, 1, 2, tzinfo=UTC), "alice", requests_per_minute=1))
    await store.close()
    changes = {"api_keys": redis_server.url, "redis": redis_server.url, "default_max_tokens": 7}
    async with (
        serving(scheduler, tmp_path / "scheduler.sock"),
        running(settings.model_copy(update=changes)) as client,
    ):
        await until(client, "/ready", 200)
        async with openai.AsyncOpenAI(
            base_url=f"{client.base_url}/v1", api_key="secret", max_retries=0
        ) as api:
            messages = [{"role": "user", "content": "Which animal is lazy?"}]
            assert await api.chat.completions.create(
                model="tiny", messages=messages, extra_body={"timeout": 5}
            )
            with pytest.raises(openai.RateLimitError):
                await api.chat.completions.create(model="tiny", messages=messages)
    (submit,) = scheduler.submits
    assert (submit.tenant, submit.weight, submit.priority, submit.max_tokens) == ("alice", 1.0, 0, 7)
    assert 0 < submit.timeout_ms <= 5000
    async with Redis.from_url(redis_server.url) as redis:
        assert await redis.exists("batchyard:limits:alice")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"api_keys": "/none/keys.json"}, "cannot read /none/keys.json"),
        ({"api_keys": "redis://host:port"}, "not a Redis URL"),
        ({"redis": "host:6379"}, "not a Redis URL"),
    ],
)
async def test_settings_that_cannot_be(settings, changes, said):
    with pytest.raises(ConfigError, match=said):
        await run(settings.model_copy(update=changes))


@pytest.mark.parametrize("name", ["port", "grpc_port"])
async def test_a_port_in_use(settings, name):
    with bind("127.0.0.1", getattr(settings, name), share_port=False) as taken:
        taken.listen()
        with pytest.raises(AddressInUse):
            await run(settings)


async def test_a_model_without_a_tokenizer(settings, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError):
        await run(settings.model_copy(update={"model": str(tmp_path / "empty")}))
