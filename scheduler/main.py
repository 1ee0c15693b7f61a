"""The scheduler process."""

import asyncio
import gc
import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import structlog
from prometheus_client import CollectorRegistry

from batchyard.config import SchedulerSettings
from batchyard.errors import ConfigError
from batchyard.metrics.endpoint import new_registry, serve_metrics
from batchyard.metrics.pushing import push_metrics
from batchyard.metrics.vitals import Vitals
from batchyard.rpc import RpcServer
from batchyard.telemetry import Telemetry
from batchyard.tls import internal_tls
from prefix_cache.mirror import PrefixMirror
from protos.scheduling_pb2_grpc import add_SchedulerServicer_to_server
from scheduler.active import run_while_active
from scheduler.connection import LaneOptions
from scheduler.core import Scheduler
from scheduler.demand_meter import DemandMeter
from scheduler.lease import Lease, keep_alone
from scheduler.metrics import SchedulerCollector, with_aliases
from scheduler.redis_lease import RedisLease, nobody_steps
from scheduler.registry import Registry
from scheduler.service import SchedulerService
from scheduler.shedding import QueueLimits
from scheduler.tracing import RequestSpans
from scheduler.transport import GrpcTransport

log = structlog.get_logger()

_PROCESS, _INSTANCE = "batchyard-scheduler", "scheduler"  # in traces and metrics
_LOOK_EVERY_S = 0.25  # at whether tokens can flow

SERVICE = "batchyard.internal.v1.Scheduler"


async def run(settings: SchedulerSettings) -> None:
    """Serves until SIGTERM or SIGINT. Raises AddressInUse, and ConfigError for bad certificates."""
    tls = internal_tls(settings)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    telemetry = Telemetry(_PROCESS, _INSTANCE, settings.otlp)
    lease = Lease()
    transports = [GrpcTransport(address, lease, tls) for address in settings.worker_addresses]
    mirror = _mirror(settings.redis)
    limits = QueueLimits(settings.max_queue_requests, settings.max_queue_tokens)
    spans = RequestSpans(telemetry.spans)
    scheduler = Scheduler(transports, _lane_options(settings), spans, mirror, limits=limits)
    keeper = _keeper(settings, scheduler)
    server = RpcServer(settings.scheduler_listen, tls=tls)
    registry = Registry(scheduler.fleet, lambda address: GrpcTransport(address, lease, tls))
    server.add(add_SchedulerServicer_to_server, SchedulerService(scheduler, registry, lease), SERVICE)
    await server.start()
    demand = DemandMeter(scheduler, settings.ttft_objective)
    process = new_registry()
    vitals = Vitals(process)
    close_metrics = _publish(settings, scheduler, SchedulerCollector(scheduler, lease, demand), process)
    log.info("scheduler_serving", address=server.address, workers=list(settings.worker_addresses))
    # What exists now stays: collections need not walk over it again in the middle of a step.
    gc.collect()
    gc.freeze()
    tasks = [
        asyncio.create_task(keeper.keep(lease) if keeper else keep_alone(lease)),
        asyncio.create_task(run_while_active(scheduler, lease)),
        asyncio.create_task(_tell_health(scheduler, server)),
        asyncio.create_task(demand.run()),
        asyncio.create_task(vitals.run()),
    ]
    await asyncio.wait([*tasks, asyncio.create_task(stop.wait())], return_when=asyncio.FIRST_COMPLETED)
    await _end(tasks)
    lease.drop("the scheduler is ending", foreseen=True)  # gateways leave, for whoever is next
    if keeper:
        await keeper.release()
        await keeper.close()
    await server.stop(grace=0.2)
    await asyncio.gather(*(lane.close() for lane in scheduler.lanes))
    if mirror:
        await mirror.close()
    close_metrics()
    telemetry.shutdown()


def _publish(
    settings: SchedulerSettings, scheduler: Scheduler, books: SchedulerCollector, process: CollectorRegistry
) -> Callable[[], None]:
    """Shows metrics on /metrics, and sends them by OTLP, as far as either is wanted. What ends it."""
    closing = ExitStack()
    if settings.metrics_port:
        shown = with_aliases(books, scheduler, settings.served_model_name)
        closing.callback(serve_metrics(settings.metrics_port, [shown, process])[1])
    closing.callback(push_metrics(settings, _PROCESS, _INSTANCE, [books, process]))
    return closing.close


def _lane_options(settings: SchedulerSettings) -> LaneOptions:
    return LaneOptions(
        settings.steps_in_flight,
        settings.step_timeout,
        settings.enable_prefix_caching,
        settings.calm_chunk_tokens,
    )


async def _end(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled() and (error := task.exception()):
            log.error("scheduler_failed", exc_info=error)


async def _tell_health(scheduler: Scheduler, server: RpcServer) -> None:
    """Has gRPC's health service say whether tokens can flow now."""
    told = False
    while True:
        ready = scheduler.describe().ready
        if ready != told:
            await server.set_serving(ready)
            told = ready
        await asyncio.sleep(_LOOK_EVERY_S)


def _keeper(settings: SchedulerSettings, scheduler: Scheduler) -> RedisLease | None:
    if not settings.redis:
        return None
    # Of all workers, those that have registered included: that is up to date on a standby as well.
    return RedisLease(settings.redis, settings.lease_ttl, lambda: nobody_steps(scheduler.fleet.transports))


def _mirror(url: str | None) -> PrefixMirror | None:
    if not url:
        return None
    try:
        return PrefixMirror(url)
    except ValueError as error:  # of its options; the error names one, and shows no value
        raise ConfigError(f"redis: {error}") from error
