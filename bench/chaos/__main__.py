"""Faults under load, and one table of what clients saw of them: `make chaos`.

Three CPU workers with the demo model, schedulers, two gateways and a Redis, all real processes on this machine,
and clients that keep so many streams of mixed kinds alive. Each fault is played so many times; every stream's
tokens, text, log-probabilities, finish reason and usage are compared with those of the same request while nothing
was wrong. See docs/recovery.md.
"""

import argparse
import asyncio
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path

from batchyard.demo import MODEL_DIR
from bench.chaos.cluster import Cluster
from bench.chaos.faults import Fault, all_faults
from bench.chaos.playing import Record, Stage
from bench.chaos.questions import questions
from bench.chaos.rehearsal import rehearse
from bench.chaos.table import table, troubles, usual_gaps
from bench.chaos.wire import allowed
from bench.prompts import Text


async def play_all(faults: Sequence[Fault], options: argparse.Namespace) -> list[Record]:
    """Prints the table as it grows; returns its records."""
    text = Text(MODEL_DIR)
    asked = questions(text.prompts(options.streams * 3 // 2), "demo")
    records = []
    for layout, group in itertools.groupby(faults, key=lambda fault: fault.layout):
        with tempfile.TemporaryDirectory(prefix="batchyard-chaos-") as folder:
            async with Cluster(Path(folder), layout) as cluster:
                script = await rehearse(cluster.rpc, asked, options.streams)
                print(f"{layout}: {len(script.questions)} questions; left out: {list(script.left_out)}", flush=True)
                stage, calm = Stage(cluster, script, options.streams), Record("nothing")
                await stage.play(calm, None)
                print(usual_gaps(calm))
                print(table([calm], calm), flush=True)
                for fault in group:
                    record = Record(fault.name)
                    for _ in range(options.times):
                        await stage.play(record, fault)
                    print(table([record], calm).splitlines()[-1], flush=True)
                    print("\n".join(troubles(record)), flush=True)
                    records.append(record)
                if options.log: print(cluster.log())
    return records


def main() -> None:
    """Reads the command line; ends with 1 where a stream was lost or differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=20, help="that each fault is played")
    parser.add_argument("--streams", type=int, default=64, help="alive at a time")
    parser.add_argument("--only", default="", help="faults with this in their name")
    parser.add_argument("--log", action="store_true", help="print what the processes said")
    options = parser.parse_args()
    faults = [fault for fault in all_faults() if options.only in fault.name and (allowed() or not fault.layout.far)]
    records = asyncio.run(play_all(faults, options))


if __name__ == "__main__":
    main()
