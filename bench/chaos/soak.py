"""Mixed load with random faults for a long time, and what the processes hold at its end: `make soak`.

    python -m bench.chaos.soak --minutes 30

The same clients, questions and faults as in `python -m bench.chaos`. Every stream is compared as it ends.
What a process holds is taken down when nothing runs: after a first minute of load, and at the end.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from batchyard.demo import MODEL_DIR
from bench.chaos.clients import Clients
from bench.chaos.cluster import Cluster, Layout
from bench.chaos.errors import Unexpected
from bench.chaos.faults import Fault, all_faults
from bench.chaos.questions import differences, questions
from bench.chaos.rehearsal import Script, rehearse
from bench.chaos.usage import Usage, growth, usage
from bench.chaos.wire import allowed
from bench.prompts import Text

_FULL_S, _DRAIN_S = 90.0, 60.0
_WARM_SHARE, _WARM_S = 0.1, 60.0  # of the time, and at most
_PAUSE_S = 5.0  # at most, between two faults
_LOOK_S = 0.5  # between looks for streams that have ended


@dataclass(slots=True)
class Outcome:
    """What came of it."""

    seconds: float = 0.0
    streams: int = 0
    cut: int = 0  # connected to a gateway that was killed
    faults: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    unaccounted: str = ""
    before: dict[str, Usage] = field(default_factory=dict)
    after: dict[str, Usage] = field(default_factory=dict)

    @property
    def troubles(self) -> list[str]:
        """All that should not be."""
        left = [self.unaccounted] if self.unaccounted else []
        return [*self.lost, *self.differing, *left, *growth(self.before, self.after)]


class Soak:
    """One run on one cluster."""

    def __init__(self, cluster: Cluster, script: Script, streams: int, seed: int) -> None:
        self._cluster = cluster
        self._script = script
        self._streams = streams
        self._random = random.Random(seed)
        self._outcome = Outcome()

    async def run(self, faults: Sequence[Fault], seconds: float) -> Outcome:
        """Raises TimeoutError where the cluster does not come back to full capacity after a fault."""
        outcome, began = self._outcome, time.monotonic()
        await self._load(min(_WARM_S, _WARM_SHARE * seconds), [])
        outcome.before = await usage(self._cluster)
        await self._load(seconds - (time.monotonic() - began), faults)
        outcome.after = await usage(self._cluster)
        outcome.seconds = time.monotonic() - began
        return outcome

    async def _load(self, seconds: float, faults: Sequence[Fault]) -> None:
        """When it returns, nothing runs."""
        clients = Clients(self._cluster.rpc, self._script.questions)
        comparing = asyncio.create_task(self._compare_on(clients))
        until = time.monotonic() + seconds
        try:
            await clients.start(self._streams)
            while (left := until - time.monotonic()) > 0:
                await asyncio.sleep(min(left, self._random.uniform(0, _PAUSE_S)))
                if faults:
                    await self._strike(clients, self._random.choice(faults))
            await clients.stop(_DRAIN_S)
        finally:
            comparing.cancel()
            await asyncio.wait([comparing])
            await clients.close()
        self._compare(clients)
        self._outcome.unaccounted = self._outcome.unaccounted or await self._cluster.unaccounted()

    async def _strike(self, clients: Clients, fault: Fault) -> None:
        self._outcome.faults[fault.name] += 1
        clients.gone.update({fault.cuts} if fault.cuts else ())
        try:
            await fault.harm(self._cluster)
            await asyncio.sleep(fault.hold_s)
            await fault.heal(self._cluster)
        except Unexpected as error:
            self._outcome.lost.append(f"{fault.name}: {error}")
        await self._cluster.full(_FULL_S)
        self._compare(clients)
        clients.gone.clear()

    async def _compare_on(self, clients: Clients) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            self._compare(clients)

    def _compare(self, clients: Clients) -> None:
        """A stream that ends with an error while its gateway is gone was cut off with it."""
        for stream in clients.take_ended():
            kind = self._script.questions[stream.number].kind
            self._outcome.streams += 1
            if stream.error and stream.gateway in clients.gone:
                self._outcome.cut += 1
            elif stream.error:
                self._outcome.lost.append(f"{kind}: {stream.error}")
            elif found := "; ".join(differences(stream.answer, self._script.answers[stream.number])):
                self._outcome.differing.append(f"{kind}: {found}")


async def soak(seconds: float, streams: int, seed: int, logs: Path) -> Outcome:
    """For so long, on a cluster with all that faults need."""
    layout = Layout(tight=True, far=allowed())
    faults = [fault for fault in all_faults() if layout.far or not fault.layout.far]
    asked = questions(Text(MODEL_DIR).prompts(streams * 3 // 2), "demo")
    async with Cluster(logs, layout, streams) as cluster:
        script = await rehearse(cluster.rpc, asked, streams)
        return await Soak(cluster, script, streams, seed).run(faults, seconds)


def report(outcome: Outcome) -> str:
    """In Markdown."""
    counted = ", ".join(f"{times} x {name}" for name, times in outcome.faults.most_common())
    lines = [
        f"{outcome.seconds / 60:.1f} minutes, {outcome.streams} streams, {len(outcome.lost)} lost, "
        f"{len(outcome.differing)} differing, {outcome.cut} cut off with their gateway.",
        f"Faults: {counted}.",
        "",
        "| process | after the first load | at the end |",
        "|---|---|---|",
        *(f"| {name} | {outcome.before[name]} | {now} |" for name, now in sorted(outcome.after.items())),
        "",
        *outcome.troubles,
    ]
    return "\n".join(lines)


def main() -> None:
    """Reads the command line; ends with 1 where something should not be."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--streams", type=int, default=64, help="alive at a time")
    parser.add_argument("--seed", type=int, default=0, help="of the order of faults")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    with tempfile.TemporaryDirectory(prefix="batchyard-soak-") as folder:
        outcome = asyncio.run(soak(60 * arguments.minutes, arguments.streams, arguments.seed, Path(folder)))
    print(report(outcome))
    sys.exit(bool(outcome.troubles))


if __name__ == "__main__":
    main()
