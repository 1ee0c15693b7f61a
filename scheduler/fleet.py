"""The workers there are: their lanes, which come and go, and the tasks that run these."""

import asyncio
import time
from collections.abc import Callable

import structlog

from batchyard.errors import UnknownWorker
from protos.step_pb2 import WorkerDescription
from scheduler.lane import Lane
from scheduler.transport import Transport

log = structlog.get_logger()

_ABSENCE = 10.0  # seconds for which a worker that went away is expected back


class Fleet:
    """Keeps every lane running while `run` does."""

    def __init__(self, make: Callable[[Transport], Lane], on_removed: Callable[[Lane], None]) -> None:
        """`make` gives the lane to a worker; `on_removed` is told of one that is no more."""
        self.lanes: list[Lane] = []
        self._make = make
        self._on_removed = on_removed
        self._group: asyncio.TaskGroup | None = None
        self._streams = 0  # of all lanes, when they were last looked at
        self._tasks: dict[Lane, asyncio.Task[None]] = {}

    def add(self, transport: Transport) -> Lane:
        """A lane to one more worker."""
        lane = self._make(transport)
        self.lanes.append(lane)
        if self._group:
            self._start(lane, self._group)
        return lane

    def remove(self, lane: Lane) -> None:
        """Forgets a worker. If it still has requests they go elsewhere."""
        self.lanes.remove(lane)
        self._on_removed(lane)
        if task := self._tasks.pop(lane, None):
            task.cancel()
        log.info("worker_removed", address=lane.address, worker=lane.name)

    @property
    def transports(self) -> list[Transport]:
        """The ways to all workers that are known, connected or not."""
        return [lane.transport for lane in self.lanes]

    def welcome(self) -> None:
        """If somebody has connected since the last call, those who wait for a row elsewhere may go there."""
        streams = sum(lane.tally.streams for lane in self.lanes)
        if streams != self._streams:
            self._streams = streams
            for lane in self.lanes:
                lane.recall()

    def expected(self) -> list[WorkerDescription]:
        """The workers that are connected, or went away so lately that requests had better wait for them."""
        since = time.monotonic() - _ABSENCE
        return [
            lane.worker
            for lane in self.lanes
            if lane.worker and (lane.connected or lane.tally.lost_at > since)
        ]

    def is_taken(self, epoch: int) -> bool:
        """Whether a lane is connected to the worker's process of `epoch`."""
        return any(lane.connected and lane.worker and lane.worker.epoch == epoch for lane in self.lanes)

    def find(self, worker: str) -> Lane:
        """The lane of a worker that has been connected, by its id or its address. Raises UnknownWorker."""
        seen = [lane for lane in self.lanes if lane.worker]
        found = [lane for lane in seen if worker == lane.address]
        found = found or [lane for lane in seen if worker == lane.name]
        # Of processes that followed one another under a name, the one that is here is meant.
        found = [lane for lane in found if lane.connected] or found
        if len(found) == 1:
            return found[0]
        known = ", ".join(f"{lane.name} at {lane.address}" for lane in found or seen) or "none"
        problem = "is several workers: name one by its address" if found else "is no worker"
        raise UnknownWorker(f"{worker!r} {problem} (there are: {known})")

    async def run(self) -> None:
        """Runs all lanes until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                for lane in self.lanes:
                    self._start(lane, group)
                try:
                    await asyncio.get_running_loop().create_future()
                finally:
                    # Before the group ends its tasks: one that joined them meanwhile would not be ended.
                    self._group = None
        finally:
            self._tasks.clear()

    def _start(self, lane: Lane, group: asyncio.TaskGroup) -> None:
        self._tasks[lane] = group.create_task(self._run(lane))

    async def _run(self, lane: Lane) -> None:
        try:
            await lane.run()
        finally:
            if lane not in self.lanes:
                await lane.close()
