"""The worker process: one device, one model, one stream of steps."""

import asyncio
import gc
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import structlog

from batchyard.config import WorkerSettings
from batchyard.metrics.endpoint import serve_metrics
from batchyard.metrics.pushing import push_metrics
from batchyard.rpc import RpcServer
from batchyard.telemetry import Telemetry
from batchyard.tls import internal_tls
from gpu_worker import service
from gpu_worker.engine import Broken, StepEngine
from gpu_worker.metrics import WorkerMetrics
from gpu_worker.mover import Mover
from gpu_worker.observers import StepObserver
from gpu_worker.registration import Registrar, registrar_for
from gpu_worker.startup import Started, start_runner, start_smaller
from gpu_worker.threads import single_thread
from gpu_worker.tracing import WorkerSpans
from protos.step_pb2_grpc import add_WorkerServicer_to_server

log = structlog.get_logger()

_PROCESS = "batchyard-worker"  # in traces and metrics

_GRACE = 1.0  # seconds for streams to end
_LEAVE = 2.0  # seconds for the scheduler to take its requests elsewhere
_STALLED = 10.0  # seconds after which a device that does nothing is not expected to do anything soon
_LOOK_EVERY = 1.0  # seconds between looks at it
_GIVEN_UP = 1  # exit code


class _Stopped(Exception):
    """The process was told to end while it was still starting."""


async def run(settings: WorkerSettings) -> None:
    """Serves until SIGTERM or SIGINT. Health says NOT_SERVING until the model is loaded and warm.

    Raises AddressInUse, ConfigError and ModelError. Ends the process where the device is lost.
    """
    stop = _StopSignal()
    worker = service.WorkerService()
    server = RpcServer(settings.listen, tls=internal_tls(settings))
    server.add(add_WorkerServicer_to_server, worker, service.NAME)
    await server.start()
    # Everything that touches the device happens on this thread.
    step_thread = single_thread("steps")
    try:
        loading = asyncio.wrap_future(step_thread.submit(start_runner, settings, stop.check))
        while True:
            started: Started = await loading
            model, description = started.runner.model, started.description
            await _serve(settings, server, worker, started, step_thread, stop)
            if stop.is_set:
                break
            del started
            gc.unfreeze()
            gc.collect()
            rest = settings, model, description, stop.check
            loading = asyncio.wrap_future(step_thread.submit(start_smaller, *rest))
    except _Stopped:
        log.info("stopped_while_loading")
    finally:
        await server.stop(0)
        step_thread.shutdown()


@contextmanager
def _observers(settings: WorkerSettings, num_blocks: int) -> Iterator[list[StepObserver]]:
    """What watches the steps: metrics always, traces where they go somewhere."""
    metrics = WorkerMetrics(num_blocks)
    telemetry = Telemetry(_PROCESS, settings.name, settings.otlp)
    observers: list[StepObserver] = [metrics]
    if settings.otlp:
        observers.append(WorkerSpans(telemetry.spans, settings.name))
    with ExitStack() as stack:
        stack.callback(telemetry.shutdown)
        if settings.metrics_port:
            stack.callback(serve_metrics(settings.metrics_port, [metrics.registry])[1])
        stack.callback(push_metrics(settings, _PROCESS, settings.name, [metrics.registry]))
        stack.callback(asyncio.create_task(metrics.vitals.run()).cancel)
        yield observers


async def _serve(
    settings: WorkerSettings,
    server: RpcServer,
    worker: service.WorkerService,
    started: Started,
    step_thread: ThreadPoolExecutor,
    stop: "_StopSignal",
) -> None:
    """Until told to stop, or until there is too little memory."""
    description = started.description
    with _observers(settings, description.num_blocks) as observers:
        mover = Mover(started.host_cache) if started.host_cache else None
        engine = StepEngine(started.runner, observers, step_thread, mover)
        worker.set_ready(engine, description, started.runner.rows)
        registrar = registrar_for(settings, server.address, description)
        await _serve_until_over(server, engine, registrar, stop)
        if stop.is_set:
            await engine.leave(_LEAVE)
            engine.end_stream()
            await server.stop(_GRACE)
        worker.set_not_ready()
        await asyncio.to_thread(engine.shutdown)


async def _serve_until_over(
    server: RpcServer, engine: StepEngine, registrar: Registrar, stop: "_StopSignal"
) -> None:
    # What exists now stays: collections need not walk over it again in the middle of a step.
    gc.collect()
    gc.freeze()
    description = registrar.registration.worker
    log.info(
        "worker_ready",
        address=server.address,
        model=description.model,
        device=description.device,
        blocks=description.num_blocks,
        host_blocks=description.num_host_blocks,
        max_model_len=description.max_model_len,
    )
    telling = [asyncio.create_task(_tell_health(server, engine)), asyncio.create_task(registrar.run())]
    over: list[asyncio.Future[Broken | None]] = [
        asyncio.create_task(stop.wait()),
        asyncio.create_task(_until_broken(engine)),
    ]
    done, _ = await asyncio.wait(over, return_when=asyncio.FIRST_COMPLETED)
    for future in over:
        future.cancel()
    for task in telling:
        task.cancel()
    await asyncio.wait(telling)
    await server.set_serving(False)
    for why in [future.result() for future in done]:
        if why in (Broken.DEVICE, Broken.STUCK):
            _give_up(why)


async def _until_broken(engine: StepEngine) -> Broken | None:
    return await asyncio.wrap_future(engine.broken)


def _give_up(why: Broken) -> None:
    """Ends the process, so that whoever runs it starts another: threads that are stuck end no other way."""
    log.error("worker_gives_up", why=why.name.lower())
    os._exit(_GIVEN_UP)


async def _tell_health(server: RpcServer, engine: StepEngine) -> None:
    """Has gRPC's health service say whether steps would be answered."""
    told = False
    while True:
        responds = await engine.responds(_STALLED)
        if responds != told:
            await server.set_serving(responds)
            told = responds
        await asyncio.sleep(_LOOK_EVERY)


class _StopSignal:
    """SIGTERM or SIGINT, for the event loop and for other threads."""

    def __init__(self) -> None:
        self._seen_by_loop = asyncio.Event()
        self._seen_by_threads = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self.set)

    def set(self) -> None:
        self._seen_by_threads.set()
        self._seen_by_loop.set()

    @property
    def is_set(self) -> bool:
        return self._seen_by_loop.is_set()

    async def wait(self) -> None:
        await self._seen_by_loop.wait()

    def check(self) -> None:
        """Raises _Stopped once there was a signal."""
        if self._seen_by_threads.is_set():
            raise _Stopped
