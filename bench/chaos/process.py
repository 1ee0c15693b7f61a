"""A process of Batchyard as chaos runs it: `python -m bench.chaos.process KIND FLAG…`.

It is the `batchyard` command, tied to its parent. At SIGUSR1 it writes how many asyncio tasks it has to the
file that BENCH_TASKS names. A worker follows the orders in the file that BENCH_ORDERS names.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

from batchyard.cli import main
from batchyard.lifeline import end_with_parent
from bench.chaos.orders import Orders, meddle
from bench.patching import install

TASKS, ORDERS = "BENCH_TASKS", "BENCH_ORDERS"


def _count_tasks(number: int, frame: object) -> None:
    # A handler runs on the main thread, and so between two callbacks of its event loop or in one.
    path = Path(os.environ[TASKS])
    new = path.with_suffix(".new")
    new.write_text(str(len(asyncio.all_tasks())))
    new.replace(path)


if __name__ == "__main__":
    end_with_parent(sys.stdin.fileno())
    signal.signal(signal.SIGUSR1, _count_tasks)
    if ORDERS in os.environ:
        orders = Orders(Path(os.environ[ORDERS]))
        install({"gpu_worker.main": lambda module: meddle(module, orders)})
    main()
