"""The scheduler process."""

import asyncio
import gc
import signal

import structlog

from batchyard.config import SchedulerSettings
from batchyard.errors import ConfigError
from batchyard.rpc import RpcServer
from batchyard.telemetry import Telemetry
from prefix_cache.mirror import PrefixMirror
from protos.scheduling_pb2_grpc import add_SchedulerServicer_to_server
from scheduler.active import run_while_active
from scheduler.core import Scheduler
from scheduler.lane import LaneOptions
from scheduler.lease import Lease, keep_alone
from scheduler.metrics import serve_metrics
from scheduler.service import SchedulerService
from scheduler.shedding import QueueLimits
from scheduler.tracing import RequestSpans
from scheduler.transport import GrpcTransport

log = structlog.get_logger()

SERVICE = "batchyard.internal.v1.Scheduler"


async def run(settings: SchedulerSettings) -> None:
    """Serves until SIGTERM or SIGINT. Raises AddressInUse."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    telemetry = Telemetry("batchyard-scheduler", "scheduler", settings.otlp, settings.trace_sample)
    lease = Lease()
    transports = [GrpcTransport(address, lease) for address in settings.worker_addresses]
    options = LaneOptions(
        settings.steps_in_flight,
        settings.step_timeout,
        settings.enable_prefix_caching,
        settings.calm_chunk_tokens,
    )
    mirror = _mirror(settings.redis)
    limits = QueueLimits(settings.max_queue_requests, settings.max_queue_tokens)
    scheduler = Scheduler(transports, options, RequestSpans(telemetry.tracer), mirror, limits=limits)
    server = RpcServer(settings.scheduler_listen)
    server.add(add_SchedulerServicer_to_server, SchedulerService(scheduler, lease), SERVICE)
    await server.start()
    await server.set_serving(True)
    metrics = serve_metrics(scheduler, settings.metrics_port) if settings.metrics_port else None
    log.info("scheduler_ready", address=server.address, workers=list(settings.worker_addresses))
    # What exists now stays: collections need not walk over it again in the middle of a step.
    gc.collect()
    gc.freeze()
    tasks = [asyncio.create_task(run_while_active(scheduler, lease)), asyncio.create_task(keep_alone(lease))]
    await asyncio.wait([*tasks, asyncio.create_task(stop.wait())], return_when=asyncio.FIRST_COMPLETED)
    lease.drop("the scheduler is ending")
    await server.stop(grace=1.0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, *(transport.close() for transport in transports), return_exceptions=True)
    if mirror:
        await mirror.close()
    if metrics:
        metrics.shutdown()
    telemetry.shutdown()


def _mirror(url: str | None) -> PrefixMirror | None:
    if not url:
        return None
    try:
        return PrefixMirror(url)
    except ValueError as error:
        raise ConfigError(f"redis: {url!r} is no Redis URL ({error})") from error
