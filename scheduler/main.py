"""The scheduler process."""

import asyncio
import gc
import signal

import structlog

from batchyard.config import SchedulerSettings
from batchyard.errors import ConfigError
from batchyard.rpc import RpcServer
from batchyard.telemetry import Telemetry
from batchyard.tls import internal_tls
from prefix_cache.mirror import PrefixMirror
from protos.scheduling_pb2_grpc import add_SchedulerServicer_to_server
from scheduler.connection import LaneOptions
from scheduler.core import Scheduler
from scheduler.metrics import serve_metrics
from scheduler.registry import Registry
from scheduler.service import SchedulerService
from scheduler.shedding import QueueLimits
from scheduler.tracing import RequestSpans
from scheduler.transport import GrpcTransport

log = structlog.get_logger()

_LOOK_EVERY_S = 0.25  # at whether tokens can flow

SERVICE = "batchyard.internal.v1.Scheduler"


async def run(settings: SchedulerSettings) -> None:
    """Serves until SIGTERM or SIGINT. Raises AddressInUse, and ConfigError for bad certificates."""
    tls = internal_tls(settings)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    telemetry = Telemetry("batchyard-scheduler", "scheduler", settings.otlp, settings.trace_sample)
    transports = [GrpcTransport(address, tls) for address in settings.worker_addresses]
    options = LaneOptions(
        settings.steps_in_flight,
        settings.step_timeout,
        settings.enable_prefix_caching,
        settings.calm_chunk_tokens,
    )
    mirror = _mirror(settings.redis)
    limits = QueueLimits(settings.max_queue_requests, settings.max_queue_tokens)
    scheduler = Scheduler(transports, options, RequestSpans(telemetry.tracer), mirror, limits=limits)
    server = RpcServer(settings.scheduler_listen, tls=tls)
    registry = Registry(scheduler.fleet, lambda address: GrpcTransport(address, tls))
    server.add(add_SchedulerServicer_to_server, SchedulerService(scheduler, registry), SERVICE)
    await server.start()
    metrics = serve_metrics(scheduler, settings.metrics_port) if settings.metrics_port else None
    log.info("scheduler_serving", address=server.address, workers=list(settings.worker_addresses))
    # What exists now stays: collections need not walk over it again in the middle of a step.
    gc.collect()
    gc.freeze()
    steps = asyncio.create_task(scheduler.run())
    health = asyncio.create_task(_tell_health(scheduler, server))
    await asyncio.wait([steps, asyncio.create_task(stop.wait())], return_when=asyncio.FIRST_COMPLETED)
    health.cancel()
    await server.stop(grace=1.0)
    steps.cancel()
    await asyncio.gather(steps, *(transport.close() for transport in transports), return_exceptions=True)
    if mirror:
        await mirror.close()
    if metrics:
        metrics.shutdown()
    telemetry.shutdown()


async def _tell_health(scheduler: Scheduler, server: RpcServer) -> None:
    """Has gRPC's health service say whether tokens can flow now."""
    told = False
    while True:
        ready = scheduler.describe().ready
        if ready != told:
            await server.set_serving(ready)
            told = ready
        await asyncio.sleep(_LOOK_EVERY_S)


def _mirror(url: str | None) -> PrefixMirror | None:
    if not url:
        return None
    try:
        return PrefixMirror(url)
    except ValueError as error:  # of its options; the error names one, and shows no value
        raise ConfigError(f"redis: {error}") from error
