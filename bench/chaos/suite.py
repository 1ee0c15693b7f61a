"""Plays many faults, on as few clusters as their layouts allow."""

import itertools
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from batchyard.demo import MODEL_DIR
from bench.chaos.cluster import Cluster, Layout
from bench.chaos.faults import Fault
from bench.chaos.playing import Record, Stage
from bench.chaos.questions import questions
from bench.chaos.rehearsal import Script, rehearse
from bench.prompts import Text


@dataclass(frozen=True, slots=True)
class Options:
    """How the suite is run."""

    times: int = 20  # that each fault is played
    streams: int = 64  # alive at a time


@dataclass(frozen=True, slots=True)
class Scene:
    """A record with the calm one of the same cluster, where nothing was wrong."""

    record: Record
    calm: Record


class Suite:
    """Plays faults in their order."""

    def __init__(self, options: Options, logs: Path) -> None:
        """What the processes print is kept under `logs`."""
        self.options = options
        self._asked = questions(Text(MODEL_DIR).prompts(options.streams * 3 // 2), "demo")
        self.script: Script | None = None  # once it has been rehearsed
        self._logs = logs

    async def play(self, faults: Sequence[Fault]) -> AsyncGenerator[Scene, None]:
        """One after another, what came of each; first, for each cluster, the calm record itself.

        A cluster that does not come back to full capacity is replaced by a new one for the next fault.
        """
        for layout, group in itertools.groupby(faults, key=lambda fault: fault.layout):
            left = list(group)
            while left:
                async with aclosing(self._play_on(layout, left)) as scenes:
                    async for scene in scenes:
                        yield scene

    async def _play_on(self, layout: Layout, left: list[Fault]) -> AsyncGenerator[Scene, None]:
        """Takes faults off `left` as they are played."""
        folder = Path(tempfile.mkdtemp(prefix="cluster-", dir=self._logs))
        async with Cluster(folder, layout, self.options.streams) as cluster:
            if self.script is None:
                self.script = await rehearse(cluster.rpc, self._asked, self.options.streams)
            stage, calm = (
                Stage(cluster, self.script, self.options.streams),
                Record("nothing"),
            )
            await stage.play(calm, None)
            yield Scene(calm, calm)
            while left:
                fault = left.pop(0)
                record = Record(fault.name)
                whole = await self._repeat(stage, record, fault)
                yield Scene(record, calm)
                if not whole:
                    return

    async def _repeat(self, stage: Stage, record: Record, fault: Fault) -> bool:
        """Whether the cluster is whole after it."""
        try:
            for _ in range(self.options.times):
                await stage.play(record, fault)
        except TimeoutError:
            record.unaccounted.append("not at full capacity again; no more repetitions")
            return False
        return True
