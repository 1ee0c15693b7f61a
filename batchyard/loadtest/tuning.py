"""`batchyard bench tune`: finds --max-num-batched-tokens and --max-num-seqs by measuring.

Each setting is a `batchyard serve` of its own under the user's load. What was measured is written down at
once, so that a run which was cut short goes on where it was.
"""

import argparse
import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import uvloop

from batchyard.config import ServeSettings
from batchyard.errors import BadTarget, ConfigError
from batchyard.loadtest.options import Options, Parser, add_load_flags, numbers, options_of
from batchyard.loadtest.search import Space
from batchyard.loadtest.trial_table import show
from batchyard.loadtest.tuner import Notebook, Plan, Tuner
from batchyard.settings import load

_TOKENS, _SEQS = "512,1024,2048,4096,8192,16384", "16,32,64,128,256,512"
_CONCURRENCY = "64"
_WIRED = ("max_num_batched_tokens", "max_num_seqs", "port", "grpc_port", "metrics_port")


def main(argv: Sequence[str]) -> None:
    """`argv` is what follows `batchyard bench tune`. Raises UserError, and KeyboardInterrupt after Ctrl-C."""
    plan = parse(argv)
    notebook = Notebook(plan.state, plan.fingerprint)
    if notebook.trials:
        print(f"{plan.state}: {len(notebook.trials)} measured before", flush=True)
    interrupted = uvloop.run(_interruptible(plan, notebook))
    trials = list(notebook.trials.values())
    if not trials:
        raise BadTarget("--minutes: not one setting could be measured in the time there was")
    print("", *show(trials, plan.options.objectives), sep="\n")
    if interrupted:
        raise KeyboardInterrupt


async def _interruptible(plan: Plan, notebook: Notebook) -> bool:
    loop, stop, asked = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

    def end() -> None:
        asked.set()
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)
    await Tuner(plan, notebook, stop).run()
    return asked.is_set()


def parse(argv: Sequence[str]) -> Plan:
    """The command line. Raises ConfigError."""
    parser = Parser(
        prog="batchyard bench tune",
        description="Measures `batchyard serve` with several settings under a load, and says which is best.",
        epilog="After --: flags of `batchyard serve`, for instance -- --workers 2 --dtype bfloat16",
        allow_abbrev=False,
    )
    group = parser.add_argument_group("tuning")
    group.add_argument("--model", help="as that of batchyard serve")
    group.add_argument(
        "--max-num-batched-tokens", default=_TOKENS, metavar="N,..", help="default: %(default)s"
    )
    group.add_argument("--max-num-seqs", default=_SEQS, metavar="N,..", help="default: %(default)s")
    group.add_argument("--search", choices=["climb", "grid"], default="climb", help="default: climb")
    group.add_argument("--minutes", type=float, default=20.0, metavar="M", help="for all; default: 20")
    group.add_argument("--state", type=Path, default=Path("batchyard-tune.jsonl"), metavar="FILE")
    group.add_argument("serve", nargs="*", help=argparse.SUPPRESS)
    add_load_flags(parser)
    given = parser.parse_args(list(argv))
    if given.minutes <= 0:
        raise ConfigError(f"--minutes {given.minutes:g}: must be above 0")
    flags = (*(["--model", given.model] if given.model else []), *given.serve)
    space = Space(
        *(_values(getattr(given, name), name) for name in ("max_num_batched_tokens", "max_num_seqs"))
    )
    if not any(space.everything()):
        raise ConfigError("--max-num-batched-tokens must be at least --max-num-seqs somewhere")
    return Plan(
        _load_options(given), _settings(flags), flags, space, given.search, 60 * given.minutes, given.state
    )


def _load_options(given: argparse.Namespace) -> Options:
    if not (given.rate or given.concurrency or given.sweep or given.trace):
        given.concurrency = _CONCURRENCY
    # The service's own address and name come with each setting.
    given.url, given.api_key, given.ca_file = "", None, None
    model, given.model = given.model, None
    options = options_of(given, os.environ)
    given.model = model
    if len(options.points) != 1:
        raise ConfigError("--sweep and lists of loads: tune measures at one load")
    if options.save:
        raise ConfigError("--save is not for tune; its results are in --state")
    return options


def _settings(flags: Sequence[str]) -> ServeSettings:
    ours = {f"--{name.replace('_', '-')}" for name in _WIRED}
    if taken := next((flag for flag in flags if flag.split("=")[0] in ours), None):
        raise ConfigError(f"{taken}: tune sets it itself")
    return load(ServeSettings, flags, os.environ)


def _values(text: str, name: str) -> list[int]:
    values = numbers(text, f"--{name.replace('_', '-')}")
    if any(value % 1 for value in values):
        raise ConfigError(f"--{name.replace('_', '-')} {text}: should be whole numbers")
    return sorted({int(value) for value in values})
