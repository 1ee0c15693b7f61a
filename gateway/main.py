"""The gateway process."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import structlog

from batchyard.config import GatewaySettings
from batchyard.errors import ConfigError
from batchyard.hub import resolve_model
from batchyard.metrics.pushing import push_metrics
from batchyard.rpc import OF_CLIENTS, RpcServer
from batchyard.telemetry import Telemetry
from batchyard.tls import TlsFiles, api_tls, internal_tls
from gateway.app import create_app
from gateway.body import MAX_BODY
from gateway.console.journal import Journal
from gateway.console.peers import Peers
from gateway.console.state import TENANTS_ASKED, Console
from gateway.garbage import collect_rarely
from gateway.keys.ring import KeyRing
from gateway.keys.stores import open_store
from gateway.late_backend import LateBackend
from gateway.limits.door import Door
from gateway.limits.limiter import Limiter, LocalLimiter
from gateway.limits.shared import SharedLimiter
from gateway.link import SchedulerLink
from gateway.metrics import Metrics
from gateway.readiness import Watch
from gateway.request_trace import Traces
from gateway.rpc_service import SERVICE, RpcInference
from gateway.server import HttpServer, bind
from gateway.service import Service
from gateway.shaping import Shape
from gateway.tokenizing import Tokenizer
from gateway.warm_prompts import load_warm_prompts
from protos.inference_pb2_grpc import add_InferenceServicer_to_server
from protos.scheduling_pb2 import WarmPrompt

log = structlog.get_logger()

_PROCESS = "batchyard-gateway"  # in traces and metrics

_GRACE_S = 4.0  # for answers under way when the process is told to end; `serve` waits a little longer
_LOOK_EVERY_S = 1.0  # at whether requests could be answered


async def run(settings: GatewaySettings) -> None:
    """Serves REST and gRPC until SIGTERM or SIGINT, from the start: `/ready` says when there is a worker.

    Raises AddressInUse, ConfigError for a host that is none and for certificates, keys or warm prompts that
    cannot be read, ModelError for a tokenizer that cannot be used.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        # First what fails at once: a port that is taken should not cost the time to read a tokenizer.
        tls, hop_tls = api_tls(settings), internal_tls(settings)
        bound = stack.enter_context(bind(settings.host, settings.port, settings.share_port))
        keys = await stack.enter_async_context(_keys(settings))
        tokenizer = await asyncio.to_thread(_load_tokenizer, settings.model)
        warm_prompts = await asyncio.to_thread(_load_warm_prompts, settings.warm_prompts, tokenizer)
        telemetry = _telemetry(settings)
        stack.callback(telemetry.shutdown)
        link = await stack.enter_async_context(
            SchedulerLink(settings.scheduler_address, warm_prompts, settings.scheduler_wait, hop_tls)
        )
        model = settings.served_model_name or settings.model
        service = Service(
            model, tokenizer, LateBackend(link, tokenizer).get, link.describe, shape=_shape(settings)
        )
        console = await stack.enter_async_context(_console(settings, model, link))
        traces = Traces(
            telemetry.spans, settings.trace_slow_ms / 1e3, link.keep, content=settings.trace_content
        )
        metrics, journal = Metrics(model), console.journal
        await stack.enter_async_context(_running(metrics.vitals.run()))
        stack.callback(push_metrics(settings, _PROCESS, _instance(), [metrics.registry]))
        door = Door(await stack.enter_async_context(_limiter(settings)), metrics)
        app = create_app(service, keys=keys, door=door, traces=traces, metrics=metrics, console=console)
        inference = RpcInference(service, keys, door, traces, metrics, journal, settings.client_timeout)
        await stack.enter_async_context(_running(collect_rarely(lambda: link.num_live)))
        http = HttpServer(app, bound, _GRACE_S, settings.client_timeout, tls)
        await _serve(console, http, inference, _rpc_server(settings, tls), stop)


async def _serve(
    console: Console,
    http: HttpServer,
    inference: RpcInference,
    rpc: RpcServer | None,
    stop: asyncio.Event,
) -> None:
    if rpc:
        rpc.add(add_InferenceServicer_to_server, inference, SERVICE)
        await rpc.start()
    http.start()
    log.info("gateway is serving", rest=http.url, grpc=rpc and rpc.address, model=console.model)
    watch = asyncio.create_task(_tell_readiness(console, rpc))
    await stop.wait()
    log.info("gateway is ending: answers under way may finish", seconds=_GRACE_S)
    watch.cancel()
    async with asyncio.TaskGroup() as ending:  # both at once, for the grace is one
        ending.create_task(http.stop())
        if rpc:
            ending.create_task(rpc.stop(_GRACE_S))


@asynccontextmanager
async def _keys(settings: GatewaySettings) -> AsyncIterator[KeyRing]:
    """The keys, kept up to date."""
    if settings.api_keys is None:
        if settings.api_key is None:
            log.warning("open to everybody: there are no API keys (--api-keys, --api-key)")
        yield KeyRing(fixed=settings.api_key)
        return
    store = open_store(settings.api_keys)
    keys = KeyRing(store, settings.api_key)
    try:
        await keys.read()
        async with _running(keys.run()):
            yield keys
    finally:
        await store.close()


@asynccontextmanager
async def _limiter(settings: GatewaySettings) -> AsyncIterator[Limiter]:
    local = LocalLimiter(settings.gateway_count)
    if settings.redis is None:
        yield local
        return
    try:
        shared = SharedLimiter(settings.redis, local)
    except ValueError as error:  # of its options; the error names one, and shows no value
        raise ConfigError(f"redis: {error}") from error
    try:
        async with _running(shared.run()):
            yield shared
    finally:
        await shared.close()


@asynccontextmanager
async def _console(settings: GatewaySettings, model: str, link: SchedulerLink) -> AsyncIterator[Console]:
    watch = Watch(lambda: link.describe(max_tenants=TENANTS_ASKED))
    peers = Peers(Journal(), Path(settings.gateway_folder) if settings.gateway_folder else None)
    async with peers.served():
        yield Console(model, watch, peers, settings.gateway_count, settings.trace_url)


@asynccontextmanager
async def _running(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Work that goes on beside, until the end of the block."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def _shape(settings: GatewaySettings) -> Shape:
    return Shape(settings.default_max_tokens, settings.max_answer_tokens, settings.max_prompt_tokens)


def _telemetry(settings: GatewaySettings) -> Telemetry:
    return Telemetry(_PROCESS, _instance(), settings.otlp, settings.trace_sample)


def _instance() -> str:
    return f"gateway-{os.getpid()}"


def _load_tokenizer(model: str) -> Tokenizer:
    tokenizer = Tokenizer.load(resolve_model(model))
    tokenizer.prepare_chats()
    return tokenizer


def _load_warm_prompts(path: str | None, tokenizer: Tokenizer) -> list[WarmPrompt]:
    return load_warm_prompts(Path(path), tokenizer) if path else []


def _rpc_server(settings: GatewaySettings, tls: TlsFiles | None) -> RpcServer | None:
    if not settings.grpc_port:
        return None
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"{host}:{settings.grpc_port}"
    return RpcServer(
        address, share_port=settings.share_port, max_request=MAX_BODY, tls=tls, keepalive=OF_CLIENTS
    )


async def _tell_readiness(console: Console, rpc: RpcServer | None) -> None:
    """Logs when requests can be answered and when not, and has gRPC's health service say the same."""
    told: str | None = ""
    while True:
        reason = (await console.watch.look()).reason
        if reason != told:
            told = reason
            log.info("ready" if reason is None else "not ready", model=console.model, reason=reason)
            if rpc:
                await rpc.set_serving(reason is None)
        await asyncio.sleep(_LOOK_EVERY_S)
