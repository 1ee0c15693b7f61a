"""Plays a fault on a cluster under load, and takes down what clients saw."""

import asyncio
import random
import time
from dataclasses import dataclass, field

from bench.chaos.clients import Clients, Stream, within
from bench.chaos.cluster import GATEWAYS, Cluster
from bench.chaos.errors import Unexpected
from bench.chaos.faults import Fault
from bench.chaos.questions import differences
from bench.chaos.rehearsal import Script

_FULL_S = 90.0  # in which the cluster must be at full capacity again
_DRAIN_S = 60.0  # in which streams must end then
_BEFORE_S = 0.7  # at most, from when all streams run to the fault
_CALM_S = 3.0


@dataclass(slots=True)
class Record:
    """What came of a fault, all its repetitions together."""

    name: str
    times: int = 0
    streams: int = 0  # alive at some time between the fault and full capacity
    cut: int = 0  # of these, connected to the process that was killed
    lost: list[str] = field(default_factory=list)  # with what error, of the others
    differing: list[str] = field(default_factory=list)  # in what, of those that ended
    silences: list[float] = field(default_factory=list)  # seconds: the longest of each stream
    recoveries: list[float] = field(default_factory=list)  # seconds to full capacity
    freed: list[float] = field(default_factory=list)  # seconds to the end of requests whose clients were cut
    unaccounted: list[str] = field(default_factory=list)  # blocks, rows and requests


class Stage:
    """One cluster, and clients who ask what is in the script."""

    def __init__(
        self, cluster: Cluster, script: Script, streams: int, patience: float = 1.0, *, asks_on: bool = True
    ) -> None:
        """Faults are held `patience` times as long as they say.

        With `asks_on` there are so many streams until all is well again. Without, what is started again has
        the machine to itself once they have ended.
        """
        self._cluster = cluster
        self._script = script
        self._streams = streams
        self._patience = patience
        self._asks_on = asks_on
        self._random = random.Random(0)

    async def play(self, record: Record, fault: Fault | None) -> None:
        """Plays `fault` once, or nothing for a while. When it returns, nothing runs and all is whole.

        Raises TimeoutError where the cluster does not come back to full capacity: it is of no use any more.
        """
        clients = Clients(self._cluster.rpc, self._script.questions)
        record.times += 1
        try:
            await clients.start(self._streams)
            await asyncio.sleep(self._random.uniform(0, _BEFORE_S))
            began = time.monotonic()
            await self._strike(clients, record, fault)
            whole = time.monotonic()
            await clients.stop(_DRAIN_S)
        finally:
            await clients.close()
        record.recoveries.append(whole - began)
        for stream in clients.streams:
            if (stream.ended or whole) >= began and stream.asked <= whole:
                self._note(record, stream, began, whole, fault)
        if left := await self._cluster.unaccounted():
            record.unaccounted.append(left)

    async def _strike(self, clients: Clients, record: Record, fault: Fault | None) -> None:
        if fault is None:
            await asyncio.sleep(_CALM_S)
            return
        try:
            if fault.cuts:
                clients.gone.add(fault.cuts)
            await fault.harm(self._cluster)
            if fault.cuts:
                record.freed.append(await self._freed(clients))
            await asyncio.sleep(fault.hold_s * self._patience)
            if not self._asks_on:
                clients.ask_no_more()
            await fault.heal(self._cluster)
        except Unexpected as error:
            record.lost.append(str(error))
        await self._cluster.full(_FULL_S)
        clients.gone.clear()

    async def _freed(self, clients: Clients) -> float:
        """Seconds until the scheduler has no more requests than the gateways that are left."""
        began = time.monotonic()

        async def freed() -> bool:
            _, state = await self._cluster.describe()
            alive = sum(clients.choices_alive(name) for name in GATEWAYS if name not in clients.gone)
            return state.running + state.waiting <= alive

        await within(freed, _DRAIN_S)
        return time.monotonic() - began

    def _note(self, record: Record, stream: Stream, began: float, whole: float, fault: Fault | None) -> None:
        record.streams += 1
        if fault and stream.gateway == fault.cuts and stream.asked <= began:
            record.cut += 1
            return
        kind = self._script.questions[stream.number].kind
        record.silences.append(stream.longest_gap(began, whole))
        if stream.error:
            record.lost.append(f"{kind}: {stream.error}")
        elif found := "; ".join(differences(stream.answer, self._script.answers[stream.number])):
            record.differing.append(f"{kind}: {found}")
