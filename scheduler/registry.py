"""Workers that register themselves, each under a lease that its beats renew.

    register ──▶ a lane, stepped at once ──beats──▶ … ──none for LEASE_S──▶ removed, once nothing runs there

A lease that is over says that nobody should be sent there, not that those who are there are lost: the step
stream and its deadlines say that. So a worker that stands still while it is idle is given no work, and one
whose beats are late while it answers steps goes on.
"""

import asyncio
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from batchyard.errors import WorkerRefused
from protos.step_pb2 import WorkerDescription
from scheduler.fleet import Fleet
from scheduler.lane import Lane
from scheduler.transport import Transport

log = structlog.get_logger()

LEASE_S = 5.0
_LOOK_AGAIN_S = 0.5  # at a worker whose lease is over while requests run there


@dataclass(slots=True)
class _Lease:
    lane: Lane
    added: bool  # by us: else the lane was there, and stays
    worker: WorkerDescription
    timer: asyncio.TimerHandle


class Registry:
    """Adds lanes to a fleet and removes them. A worker is known by its address."""

    def __init__(self, fleet: Fleet, connect: Callable[[str], Transport], lease_s: float = LEASE_S) -> None:
        """`connect` gives the way to an address; leases last `lease_s` seconds from a beat on."""
        self.lease_s = lease_s
        self._fleet = fleet
        self._connect = connect
        self._leases: dict[str, _Lease] = {}

    def register(self, address: str, worker: WorkerDescription) -> None:
        """A worker is at `address`. Raises WorkerRefused where it does not compute what the others do."""
        self._check(address, worker)
        self._remove_earlier(address, worker)
        lease = self._leases.get(address)
        if lease is None:
            known = self._lane(address, worker.epoch)
            lane = known or self._fleet.add(self._connect(address))
            timer = self._timer(address, self.lease_s)
            self._leases[address] = _Lease(lane, known is None, worker, timer)
            log.info("worker_registered", address=address, worker=worker.worker_id)
        else:
            lease.worker = worker
        self.renew(address)
        # If its lane waits to try again, then no longer.
        self._leases[address].lane.hurry()

    def renew(self, address: str) -> bool:
        """A beat. False if the lease is over: the worker must register again."""
        if lease := self._leases.get(address):
            lease.timer.cancel()
            lease.timer = self._timer(address, self.lease_s)
        return lease is not None

    def _check(self, address: str, worker: WorkerDescription) -> None:
        here = {lane.address: lane.worker for lane in self._fleet.lanes if lane.connected and lane.worker}
        here |= {at: lease.worker for at, lease in self._leases.items()}
        here.pop(address, None)
        for other in here.values():
            if other.model != worker.model:
                raise WorkerRefused(
                    f"{worker.worker_id} has model {worker.model}, and {other.worker_id} has {other.model}: "
                    "an answer could not go on from one to the other"
                )

    def _remove_earlier(self, address: str, worker: WorkerDescription) -> None:
        """It was at another address before, if a worker of its name is gone from there."""
        for other, lease in list(self._leases.items()):
            lane = lease.lane
            if other != address and lease.added and not lane.connected and lane.name == worker.worker_id:
                lease.timer.cancel()
                self._end(other, lease)

    def _lane(self, address: str, epoch: int) -> Lane | None:
        """To that address, or by another one to that process."""
        lanes = self._fleet.lanes
        at = [lane for lane in lanes if lane.address == address]
        to = [lane for lane in lanes if lane.connected and lane.worker and lane.worker.epoch == epoch]
        return next(iter(at + to), None)

    def _timer(self, address: str, seconds: float) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(seconds, self._lapse, address)

    def _lapse(self, address: str) -> None:
        lease = self._leases[address]
        if lease.lane.idle:
            self._end(address, lease)
        else:
            lease.timer = self._timer(address, _LOOK_AGAIN_S)

    def _end(self, address: str, lease: _Lease) -> None:
        del self._leases[address]
        if lease.added:
            self._fleet.remove(lease.lane)


def address_from(advertised: str, peer: str) -> str:
    """Where to reach a worker that said `advertised` and called from `peer`, as gRPC names peers.

    An address without a host, such as `:50052`, has that of the call: `ipv4:10.0.0.7:41234` gives
    `10.0.0.7:50052`. Raises WorkerRefused where the call has none.
    """
    if not advertised.startswith(":"):
        return advertised
    kind, _, rest = urllib.parse.unquote(peer).partition(":")
    host = rest.rpartition(":")[0]
    if kind not in ("ipv4", "ipv6") or not host:
        raise WorkerRefused(f"the worker at {advertised} must say its host, for it calls from {peer}")
    return f"{host}{advertised}"
