"""Faults under load, and one table of what clients saw of them: `make chaos`.

Three CPU workers with the demo model, schedulers, two gateways and a Redis, all of them real processes here,
and clients that keep so many streams of mixed kinds alive. Each fault is played so many times. Every stream's
tokens, text, log-probabilities, finish reason and usage are compared with those of the same request while
nothing was wrong. See docs/recovery.md.
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import structlog

from bench.chaos.faults import Fault, all_faults
from bench.chaos.playing import Record
from bench.chaos.suite import Options, Suite
from bench.chaos.table import head, line, troubles, usual_gaps
from bench.chaos.wire import allowed


async def play(faults: Sequence[Fault], options: Options, logs: Path) -> list[Record]:
    """Prints the table as it grows, then what should not be."""
    suite, records = Suite(options, logs), list[Record]()
    print(head())
    async for scene in suite.play(faults):
        print(line(scene.record, scene.calm), flush=True)
        records.append(scene.record)
    if suite.script:
        asked, left_out = suite.script.questions, suite.script.left_out
        print(f"\n{len(asked)} questions, {len(left_out)} left out: they have two answers without any fault.")
    print(usual_gaps([record for record in records if record.name == "nothing"]))
    print("\n".join(trouble for record in records for trouble in troubles(record)))
    return records


def main() -> None:
    """Reads the command line; ends with 1 where a stream was lost or differs, or something is left over."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    defaults = Options()
    parser.add_argument("--times", type=int, default=defaults.times, help="that each fault is played")
    parser.add_argument("--streams", type=int, default=defaults.streams, help="alive at a time")
    parser.add_argument("--only", default="", metavar="WORDS", help="faults with this in their names")
    parser.add_argument("--logs", type=Path, help="an existing folder, to keep what the processes print")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    faults = [fault for fault in all_faults() if arguments.only in fault.name]
    if not allowed():
        faults = [fault for fault in faults if not fault.layout.far]
        print("Without root there are no network namespaces: the faults of the network are left out.")
    with tempfile.TemporaryDirectory(prefix="batchyard-chaos-") as folder:
        options = Options(arguments.times, arguments.streams)
        records = asyncio.run(play(faults, options, arguments.logs or Path(folder)))
    sys.exit(any(record.lost or record.differing or record.unaccounted for record in records))


if __name__ == "__main__":
    main()
