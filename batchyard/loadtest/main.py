"""`batchyard bench`: runs a load test, or does something with the results of earlier ones."""

import asyncio
import signal
from collections.abc import Sequence

import uvloop

from batchyard.loadtest import measuring
from batchyard.loadtest.options import Options, parse
from batchyard.loadtest.results import Result
from batchyard.loadtest.saving import save_all
from batchyard.loadtest.sweep import find_knee
from batchyard.loadtest.table import show_sweep


def main(argv: Sequence[str]) -> None:
    """`argv` is what follows `batchyard bench`. Raises UserError, and KeyboardInterrupt after Ctrl-C."""
    action, *rest = argv or [""]
    if action == "compare":
        from batchyard.loadtest.comparison import main as compare

        compare(rest)
    elif action == "plot":
        from batchyard.loadtest.saving import main as plot

        plot(rest)
    elif action == "tune":
        from batchyard.loadtest.tuning import main as tune

        tune(rest)
    else:
        _bench(parse(argv))


def _bench(options: Options) -> None:
    result, stopped = uvloop.run(_interruptible(options))
    _report(result, options)
    if stopped:
        raise KeyboardInterrupt
    outcomes = [outcome for run in result.runs for outcome in run.outcomes]
    measuring.check_answered(outcomes, result.url)


async def _interruptible(options: Options) -> tuple[Result, bool]:
    """The first Ctrl-C ends the load test, the second the process."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def end() -> None:
        stop.set()
        loop.remove_signal_handler(signal.SIGINT)

    loop.add_signal_handler(signal.SIGINT, end)
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    return await measuring.run(options, stop), stop.is_set()


def _report(result: Result, options: Options) -> None:
    if len(result.runs) > 1 or not options.points:
        print(*show_sweep(result, find_knee(result.runs)), sep="\n")
    if options.save:
        print(*save_all(result, options.save), sep="\n")
