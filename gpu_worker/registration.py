"""Tells every scheduler of this worker, for as long as it can be stepped: `Register` in scheduling.proto."""

import asyncio
from collections.abc import Sequence

import grpc.aio
import structlog

from batchyard.config import WorkerSettings
from batchyard.rpc import connect
from batchyard.tls import TlsFiles, internal_tls
from protos.scheduling_pb2 import Registered, Registration
from protos.scheduling_pb2_grpc import SchedulerStub
from protos.step_pb2 import WorkerDescription

log = structlog.get_logger()

_RETRY_S = 0.25  # before a stream that ended is opened again,
_REFUSED_S = 2.0  # and one that was refused
_BEATS_PER_LEASE = 3
_WILDCARDS = ("0.0.0.0", "[::]")


class Registrar:
    """Holds a lease with each of the schedulers, active or not: which of them is, they know."""

    def __init__(
        self, schedulers: Sequence[str], registration: Registration, tls: TlsFiles | None = None
    ) -> None:
        """`schedulers` are addresses, host:port or unix:/path."""
        self.registration = registration
        self._schedulers = schedulers
        self._tls = tls

    async def run(self) -> None:
        """Registers, and again whenever a scheduler is back, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for address in self._schedulers:
                group.create_task(self._keep_registered(address))

    async def _keep_registered(self, scheduler: str) -> None:
        async with connect(scheduler, self._tls) as channel:
            stub = SchedulerStub(channel)
            while True:
                pause = _RETRY_S
                try:
                    await _Lease(scheduler, self.registration).hold(stub.Register(wait_for_ready=True))
                except grpc.aio.AioRpcError as error:
                    refused = error.code() == grpc.StatusCode.FAILED_PRECONDITION
                    pause = _REFUSED_S if refused else pause
                    say = log.error if refused else log.info
                    say("not_registered", scheduler=scheduler, reason=error.details())
                except TimeoutError:
                    log.warning("not_registered", scheduler=scheduler, reason="it does not answer beats")
                await asyncio.sleep(pause)


class _Lease:
    """One stream to one scheduler."""

    def __init__(self, scheduler: str, registration: Registration) -> None:
        self._scheduler = scheduler
        self._registration = registration
        self._granted = asyncio.Event()
        self._seconds = 0.0

    async def hold(self, call: "grpc.aio.StreamStreamCall[Registration, Registered]") -> None:
        """Returns when the scheduler ends the lease. Raises AioRpcError, and TimeoutError if it is silent."""
        beats = asyncio.create_task(self._beat(call))
        try:
            async with asyncio.timeout(None) as patience:
                async for granted in call:
                    self._seconds = granted.lease_ms / 1000
                    patience.reschedule(asyncio.get_running_loop().time() + self._seconds)
                    if not self._granted.is_set():
                        log.info("registered", scheduler=self._scheduler)
                        self._granted.set()
        finally:
            call.cancel()
            beats.cancel()
            await asyncio.gather(beats, return_exceptions=True)

    async def _beat(self, call: "grpc.aio.StreamStreamCall[Registration, Registered]") -> None:
        await call.write(self._registration)
        await self._granted.wait()
        while True:
            await asyncio.sleep(self._seconds / _BEATS_PER_LEASE)
            await call.write(Registration())


def registrar_for(settings: WorkerSettings, serving: str, worker: WorkerDescription) -> Registrar:
    """For a worker that serves at `serving`."""
    address = settings.advertise_address or advertised(serving)
    registration = Registration(address=address, worker=worker)
    return Registrar(settings.scheduler_address, registration, internal_tls(settings))


def advertised(serving: str) -> str:
    """What to tell others of the address `serving`: without the host if that means any of this machine's."""
    host, _, port = serving.rpartition(":")
    return f":{port}" if host in _WILDCARDS else serving
