"""The worker process, run in this one."""

import asyncio
import contextlib
import gc
import os
import signal
import socket
import threading

import grpc
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from batchyard.config import WorkerSettings
from batchyard.errors import AddressInUse, ConfigError
from batchyard.rpc import connect
from gpu_worker import main
from gpu_worker.models import LlamaModel
from gpu_worker.startup import start_runner, start_smaller
from protos.step_pb2 import DescribeWorkerRequest
from protos.step_pb2_grpc import WorkerStub
from tests.gpu_worker.helpers import batch, greedy, new_row, random_prompts, sampled_of

DEADLINE = 20


@pytest.fixture
def settings(tiny_llama, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        metrics_port = probe.getsockname()[1]
    return WorkerSettings(
        model=str(tiny_llama[0]),
        device="cpu",
        max_num_seqs=4,
        listen=f"unix:{tmp_path}/worker.sock",
        scheduler_address=(f"unix:{tmp_path}/scheduler.sock",),
        metrics_port=metrics_port,
    )


@pytest.fixture(autouse=True)
def thaw():
    yield
    gc.unfreeze()


async def test_loads_serves_and_ends(settings, tiny_llama, monkeypatch):
    seen = threading.Event()

    def start_slowly(*args):
        seen.wait(DEADLINE)
        return start_runner(*args)

    monkeypatch.setattr(main, "start_runner", start_slowly)
    monkeypatch.setattr(main, "_LEAVE", 0.1)
    async with asyncio.timeout(DEADLINE), connect(settings.listen) as channel:
        running = asyncio.create_task(main.run(settings))
        health = health_pb2_grpc.HealthStub(channel)
        statuses = []
        watch = health.Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True)
        async for reply in watch:
            statuses.append(reply.status)
            seen.set()
            if reply.status == health_pb2.HealthCheckResponse.SERVING:
                break
        watch.cancel()
        assert statuses == [
            health_pb2.HealthCheckResponse.NOT_SERVING,
            health_pb2.HealthCheckResponse.SERVING,
        ]
        stub = WorkerStub(channel)
        assert (await stub.Describe(DescribeWorkerRequest())).max_rows == 4
        (prompt,) = random_prompts(7)
        steps = stub.Steps()
        await steps.write(batch(1, [new_row(0, prompt, [0])], chunks=[(0, 7)]))
        assert sampled_of(await steps.read()) == {0: greedy(tiny_llama[1], prompt, 1)[0]}
        os.kill(os.getpid(), signal.SIGTERM)
        assert (await steps.read()).leaving
        await running  # nobody ends the stream, so the worker does, after a while
        assert await steps.code() == grpc.StatusCode.UNAVAILABLE
        assert await steps.details() == "the worker is shutting down"


async def test_ends_while_it_loads(settings):
    async with asyncio.timeout(DEADLINE):
        running = asyncio.create_task(main.run(settings))
        await asyncio.sleep(0)  # its signal handlers are in place
        os.kill(os.getpid(), signal.SIGTERM)
        await running


async def first_step(stub, prompt):
    steps = stub.Steps()
    await steps.write(batch(1, [new_row(0, prompt, [0])], chunks=[(0, 7)]))
    return await steps.read()


async def test_out_of_memory_shrinks_the_cache(settings, tiny_llama, monkeypatch):
    """Once, freeing caches helps; twice in one step, it does not."""
    settings = settings.model_copy(update={"num_gpu_blocks": 40})
    (prompt,) = random_prompts(7)
    expected = {0: greedy(tiny_llama[1], prompt, 1)[0]}
    logits, failures = LlamaModel.logits, [torch.OutOfMemoryError("once")]

    def short_of_memory(*args, **kwargs):
        if failures:
            raise failures.pop()
        return logits(*args, **kwargs)

    async with asyncio.timeout(DEADLINE), connect(settings.listen) as channel:
        running = asyncio.create_task(main.run(settings))
        stub = WorkerStub(channel)
        before = await described(stub)
        monkeypatch.setattr(LlamaModel, "logits", short_of_memory)
        assert sampled_of(await first_step(stub, prompt)) == expected
        assert not failures
        failures += [torch.OutOfMemoryError("again"), torch.OutOfMemoryError("and again")]
        with pytest.raises(grpc.aio.AioRpcError, match="OutOfMemoryError"):
            await first_step(stub, prompt)
        after = before
        while after.epoch == before.epoch:
            after = await described(stub)
        assert (before.num_blocks, after.num_blocks) == (40, 36)
        assert after.model == before.model
        assert sampled_of(await first_step(stub, prompt)) == expected
        os.kill(os.getpid(), signal.SIGTERM)
        await running


async def described(stub):
    while True:
        with contextlib.suppress(grpc.aio.AioRpcError):  # still loading
            return await stub.Describe(DescribeWorkerRequest(), wait_for_ready=True)
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("blocks", [40, 16])
async def test_a_cache_shrinks_no_further_than_one_sequence(settings, blocks):
    settings = settings.model_copy(update={"num_gpu_blocks": blocks})
    started = start_runner(settings, lambda: None)
    if blocks == 16:  # of 16 tokens each: one sequence
        with pytest.raises(ConfigError, match="the cache cannot shrink"):
            start_smaller(settings, started.runner.model, started.description, lambda: None)
    else:
        smaller = start_smaller(settings, started.runner.model, started.description, lambda: None)
        assert smaller.description.num_blocks == 36
        assert smaller.description.epoch != started.description.epoch


async def test_a_lost_device_ends_the_process(settings, monkeypatch):
    class ExitedError(Exception):
        pass

    def leave(code):
        raise ExitedError(code)

    def fail(*args, **kwargs):
        raise torch.AcceleratorError("an illegal memory access was encountered")

    async with asyncio.timeout(DEADLINE), connect(settings.listen) as channel:
        running = asyncio.create_task(main.run(settings))
        stub = WorkerStub(channel)
        await described(stub)
        monkeypatch.setattr(os, "_exit", leave)
        monkeypatch.setattr(LlamaModel, "logits", fail)
        with pytest.raises(grpc.aio.AioRpcError):
            await first_step(stub, [1] * 7)
        with pytest.raises(ExitedError, match="1"):
            await running


async def test_what_the_user_can_mend_is_raised(settings, tmp_path):
    async with asyncio.timeout(DEADLINE):
        with pytest.raises(ConfigError, match="--max-model-len"):
            await main.run(settings.model_copy(update={"max_model_len": 9999}))
        tls = {f"internal_ssl_{name}": f"/{name}.pem" for name in ("certfile", "keyfile", "ca_certs")}
        with pytest.raises(ConfigError, match=r"^internal_ssl_certfile: cannot read /certfile\.pem"):
            await main.run(settings.model_copy(update=tls))
        with pytest.raises(AddressInUse):
            await main.run(settings.model_copy(update={"listen": f"unix:{tmp_path}/no/such/folder.sock"}))
