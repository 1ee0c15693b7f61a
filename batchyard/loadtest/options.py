"""The command line of `batchyard bench`."""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from batchyard.errors import ConfigError
from batchyard.loadtest.results import Point
from batchyard.loadtest.sessions import Workload
from batchyard.loadtest.sources import add_workload_flags, workload_of
from batchyard.loadtest.statistics import Objectives, parse_objectives

_KEYS = ("BATCHYARD_API_KEY", "OPENAI_API_KEY")
_REQUESTS, _WARMUP, _CONCURRENCY = 100, 8, 16


@dataclass(frozen=True, slots=True)
class Target:
    """The server. `model` is None for the only one it has."""

    url: str
    model: str | None
    api_key: str | None
    timeout_s: float
    ca_file: str | None


@dataclass(frozen=True, slots=True)
class Options:
    """A load test. `points` are what is swept over; none: the sweep finds them itself."""

    target: Target
    workload: Workload
    body: Mapping[str, Any]
    pinned: bool  # ignore_eos
    points: tuple[Point, ...]
    burstiness: float
    requests: int | None
    duration_s: float | None
    warmup: int
    seed: int
    retries: int
    objectives: Objectives
    name: str
    save: Path | None
    asked: Mapping[str, Any]  # the flags that were given, for the record; no keys

    def count(self, point: Point) -> int | None:
        """Sessions of a run; None: as many as there is time for."""
        if self.requests is not None:
            return self.requests
        if point.kind == "trace":
            return self.workload.size
        if self.duration_s is None:
            # Else most of a run would be its beginning and its end.
            return max(_REQUESTS, 4 * int(point.value)) if point.kind == "concurrency" else _REQUESTS
        return max(1, round(point.value * self.duration_s)) if point.kind == "rate" else None


class Parser(argparse.ArgumentParser):
    """Says what is wrong as one ConfigError, as all of our commands do."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"bench: {message.removeprefix('argument ')}")


_EPILOG = """\
also:
  batchyard bench compare A.json B.json    ratios of two saved results, with confidence intervals batchyard
  bench plot A.json [B.json ...] --save NAME    draws saved results together batchyard bench tune --model
  MODEL       finds --max-num-batched-tokens and --max-num-seqs of `batchyard serve`

docs/load-testing.md explains it all with examples.
"""


def parse(argv: Sequence[str], environ: Mapping[str, str] = os.environ) -> Options:
    """What follows `batchyard bench`. Raises ConfigError."""
    parser = Parser(
        prog="batchyard bench",
        description="Loads a server that speaks OpenAI's streaming API, and says how it did.",
        epilog=_EPILOG,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
            prog, max_help_position=36, width=120
        ),
        allow_abbrev=False,
    )
    add_target_flags(parser)
    add_load_flags(parser)
    return options_of(parser.parse_args(list(argv)), environ)


def add_target_flags(parser: argparse.ArgumentParser) -> None:
    """Which server."""
    group = parser.add_argument_group("server")
    group.add_argument("--url", default="http://127.0.0.1:8000", help="default: %(default)s")
    group.add_argument("--model", help="its name in the API; default: the only one there is")
    group.add_argument("--api-key", help=f"default: {' or '.join(_KEYS)} in the environment")
    group.add_argument(
        "--ca-file", metavar="FILE", help="authorities (PEM) that its certificate may come from"
    )


def add_load_flags(parser: argparse.ArgumentParser) -> None:
    """What is asked, how fast, and what is reported."""
    add_workload_flags(parser)
    group = parser.add_argument_group("load")
    group.add_argument("--concurrency", metavar="N,..", help=f"requests at once; default: {_CONCURRENCY}")
    group.add_argument(
        "--rate", "--rates", metavar="X,..", help="requests a second, whatever the answers take"
    )
    group.add_argument("--burstiness", type=float, metavar="B", help="of --rate: 1 Poisson (default), 0 even")
    group.add_argument("--sweep", choices=["auto"], help="concurrencies until more of them gain nothing")
    group.add_argument(
        "--requests", type=int, metavar="N", help=f"for each run; default: {_REQUESTS} or more"
    )
    group.add_argument("--duration", type=float, metavar="S", help="seconds after which nothing new is sent")
    group.add_argument("--warmup", type=int, default=_WARMUP, metavar="N", help="before it all; default: 8")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random; default: 0")
    group.add_argument("--retries", type=int, default=0, metavar="N", help="after a 429, when it says to")
    group.add_argument(
        "--timeout", type=float, default=600.0, metavar="S", help="for one answer; default: 600"
    )
    group = parser.add_argument_group("report")
    group.add_argument(
        "--goodput", nargs="+", default=[], metavar="ttft:MS", help="objectives: ttft itl tpot e2e"
    )
    group.add_argument("--name", default="", help="in tables and plots; default: the model")
    group.add_argument("--save", type=Path, metavar="NAME", help="writes NAME.json, NAME.html and NAME*.png")


def options_of(given: argparse.Namespace, environ: Mapping[str, str]) -> Options:
    """What the flags mean together. Raises ConfigError."""
    workload = workload_of(given)
    points = _points(given, workload)
    for name in ("requests", "duration", "timeout"):
        if (value := getattr(given, name)) is not None and value <= 0:
            raise ConfigError(f"--{name} {value:g}: must be above 0")
    for name in ("warmup", "retries", "seed"):
        if getattr(given, name) < 0:
            raise ConfigError(f"--{name} {getattr(given, name)}: must not be below 0")
    if given.burstiness is not None and (given.burstiness < 0 or not any(p.kind == "rate" for p in points)):
        raise ConfigError(f"--burstiness {given.burstiness:g}: must not be below 0, and goes with --rate")
    key = given.api_key or next((environ[name] for name in _KEYS if environ.get(name)), None)
    hidden = ("url", "model", "api_key", "save", "name", "ignore_eos")
    asked = {k: _written(v) for k, v in vars(given).items() if k not in hidden and v not in (None, [], False)}
    return Options(
        target=Target(given.url, given.model, key, given.timeout, given.ca_file),
        workload=workload,
        body=_body(given),
        pinned=given.ignore_eos,
        points=points,
        burstiness=1.0 if given.burstiness is None else given.burstiness,
        requests=given.requests,
        duration_s=given.duration,
        warmup=given.warmup,
        seed=given.seed,
        retries=given.retries,
        objectives=parse_objectives(given.goodput),
        name=given.name,
        save=given.save and given.save.with_suffix("") if _has_our_suffix(given.save) else given.save,
        asked=asked if given.ignore_eos else asked | {"no_ignore_eos": ""},
    )


def _written(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _has_our_suffix(path: Path | None) -> bool:
    return path is not None and path.suffix in (".json", ".html", ".png")


def _points(given: argparse.Namespace, workload: Workload) -> tuple[Point, ...]:
    ways = [name for name in ("concurrency", "rate", "sweep") if getattr(given, name)]
    if len(ways) > 1:
        raise ConfigError(f"--{ways[0]} and --{ways[1]} exclude each other")
    if given.speed is not None and ways:
        raise ConfigError(f"--speed and --{ways[0]} exclude each other")
    if given.sweep:
        return ()
    if given.rate:
        return tuple(Point("rate", rate) for rate in numbers(given.rate, "--rate"))
    if given.concurrency or not workload.timed:
        values = numbers(given.concurrency or str(_CONCURRENCY), "--concurrency")
        if broken := next((value for value in values if value % 1), None):
            raise ConfigError(f"--concurrency {broken}: must be a whole number")
        return tuple(Point("concurrency", value) for value in values)
    return (Point("trace", given.speed or 1.0),)


def numbers(text: str, flag: str) -> list[float]:
    """`1,2,4`, all above 0. Raises ConfigError."""
    try:
        values = [float(word) for word in text.split(",")]
    except ValueError:
        values = []
    if not values or min(values) <= 0:
        raise ConfigError(f"{flag} {text}: should be like 1,2,4")
    return values


def _body(given: argparse.Namespace) -> dict[str, Any]:
    body: dict[str, Any] = {"temperature": given.temperature}
    if given.body:
        try:
            body |= json.loads(given.body)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"--body {given.body}: should be a JSON object") from error
    return body
