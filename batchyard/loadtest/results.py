"""What is kept of a load test: every request, as JSON that other tools can read."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from batchyard.errors import ConfigError
from batchyard.loadtest.lag import ClientHealth
from batchyard.loadtest.outcomes import Outcome
from batchyard.loadtest.statistics import Objectives, Summary, summarize

FORMAT = "batchyard-bench/1"


@dataclass(frozen=True, slots=True)
class Point:
    """How requests come: so many at once, so many a second, or so many times as fast as in a trace."""

    kind: Literal["concurrency", "rate", "trace"]
    value: float

    def __str__(self) -> str:
        unit = {"concurrency": "at once", "rate": "a second", "trace": "times the trace's pace"}[self.kind]
        return f"{self.value:g} {unit}"


@dataclass(frozen=True)
class Run:
    """One point of a sweep. `started` is in ISO 8601."""

    point: Point
    started: str
    objectives: Objectives
    health: ClientHealth
    stopped: bool
    outcomes: list[Outcome]

    @cached_property
    def summary(self) -> Summary:
        """Its figures."""
        return summarize(self.outcomes, self.objectives)

    def to_json(self) -> dict[str, Any]:
        """Figures first, then every request."""
        return {
            "point": asdict(self.point),
            "started": self.started,
            "stopped": self.stopped,
            "client": asdict(self.health),
            "summary": self.summary.to_json(),
            "requests": [outcome.to_json() for outcome in self.outcomes],
        }


@dataclass(frozen=True)
class Result:
    """A load test. `workload` is what was asked for, by the names of the flags."""

    name: str
    url: str
    model: str
    workload: Mapping[str, Any]
    objectives: Objectives
    runs: list[Run]

    def save(self, path: Path) -> None:
        """Writes the file. Raises ConfigError."""
        plain = {
            "format": FORMAT,
            "name": self.name,
            "url": self.url,
            "model": self.model,
            "workload": dict(self.workload),
            "objectives": asdict(self.objectives),
            "runs": [run.to_json() for run in self.runs],
        }
        write_text(path, json.dumps(plain, separators=(",", ":")))


def load_result(path: Path) -> Result:
    """What `Result.save` wrote. Raises ConfigError."""
    try:
        plain = json.loads(path.read_text("utf-8"))
        if plain["format"] != FORMAT:
            raise ValueError(plain["format"])
        objectives = Objectives(**plain["objectives"])
        runs = [_run(run, objectives) for run in plain["runs"]]
        return Result(plain["name"], plain["url"], plain["model"], plain["workload"], objectives, runs)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path}: this is not a result of `batchyard bench --save`") from error


def _run(plain: Mapping[str, Any], objectives: Objectives) -> Run:
    return Run(
        Point(**plain["point"]),
        plain["started"],
        objectives,
        ClientHealth.from_json(plain["client"]),
        plain["stopped"],
        [Outcome.from_json(outcome) for outcome in plain["requests"]],
    )


def write_text(path: Path, text: str) -> None:
    """Writes a file, its folder too. Raises ConfigError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
