"""What `batchyard serve` shows while it runs: its processes' log lines, and how much is loaded."""

import contextlib
import json
import shutil
from dataclasses import dataclass, field
from typing import Any, TextIO

import structlog

from batchyard.config import ServeSettings

_SEVERITY = {"debug": 0, "info": 1, "warning": 2, "error": 3, "critical": 4}


@dataclass
class Loading:
    """How much of their weights `workers` workers have read. Each reports `done` of `total` bytes."""

    workers: int
    done: dict[str, int] = field(default_factory=dict)
    total: dict[str, int] = field(default_factory=dict)

    def update(self, worker: str, done: int, total: int) -> None:
        """Takes a worker's report."""
        self.done[worker], self.total[worker] = done, total

    @property
    def percent(self) -> int:
        """Of all weights, 0 to 100; 100 only when every worker has everything."""
        shares = [done / max(1, self.total[worker]) for worker, done in self.done.items()]
        return int(100 * sum(shares) / self.workers)

    def __str__(self) -> str:
        if self.percent >= 100:
            return "Loading weights: 100%, warming up"
        done, total = sum(self.done.values()), sum(self.total.values())
        return f"Loading weights: {self.percent}% ({done / 1e9:.2f} of {total / 1e9:.2f} GB)"


class Console:
    """Shows what child processes write, and one status: on a terminal a line that changes, else new lines.

    Log lines look as `log_format` says. Those below a warning are left out, unless `log_level` is debug.
    """

    def __init__(self, stream: TextIO, settings: ServeSettings) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        # What we say is for people, unless JSON was asked for; what processes log is for whoever reads logs.
        self._all_json = settings.log_format == "json"
        self._json = self._all_json or (settings.log_format == "auto" and not self._terminal)
        self._render = structlog.dev.ConsoleRenderer(colors=self._terminal)
        least = settings.log_level if settings.log_level in ("debug", "error") else "warning"
        self._threshold = _SEVERITY[least]
        self._loading = Loading(settings.workers)
        self._tenths = -1
        self._status = ""

    def child_line(self, name: str, line: str) -> None:
        """Takes a line that process `name` wrote: a log event as JSON, or any text."""
        event = _parse(line)
        if event is None:
            if line.strip():
                self._print(json.dumps({"process": name, "event": line}) if self._json else f"{name}: {line}")
            return
        if (report := _loading_report(event)) and self._tenths < 10:
            self._loading.update(name, *report)
            self._show_loading()
        if _SEVERITY.get(event.get("level", "error"), 3) >= self._threshold:
            self._print(self._formatted(event | {"process": name}))

    def status(self, text: str) -> None:
        """Shows what is going on."""
        if self._terminal:
            self._status = text[: shutil.get_terminal_size().columns - 1]
            self._write("")
        else:
            self._print(json.dumps({"process": "serve", "event": text}) if self._all_json else text)

    def clear(self) -> None:
        """Takes the status off a terminal."""
        if self._terminal:
            self._status = ""
            self._write("")

    def _show_loading(self) -> None:
        tenths = self._loading.percent // 10
        if self._terminal or tenths > self._tenths:
            self.status(str(self._loading))
        self._tenths = tenths

    def _print(self, line: str) -> None:
        self._write(f"{line}\n")

    def _write(self, text: str) -> None:
        """Writes above the status, which stays the last line."""
        with contextlib.suppress(OSError):  # a terminal that was closed must not stop us from ending in order
            self._stream.write(f"\r\x1b[K{text}{self._status}" if self._terminal else text)
            self._stream.flush()

    def _formatted(self, event: dict[str, Any]) -> str:
        if self._json:
            return json.dumps(event)
        stacks = event.pop("exception", None)
        line = str(self._render(None, "", event))
        return f"{line}\n{_traceback(stacks)}" if isinstance(stacks, list) else line


def _parse(line: str) -> dict[str, Any] | None:
    """The log event in `line`, or None where it is something else."""
    if not line.startswith("{"):
        return None
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event.get("event"), str) else None


def _loading_report(event: dict[str, Any]) -> tuple[int, int] | None:
    """The bytes read and to be read, where `event` is a worker's report of that."""
    done, total = event.get("done"), event.get("total")
    if event["event"] == "loading_weights" and isinstance(done, int) and isinstance(total, int):
        return done, total
    return None


def _traceback(stacks: list[dict[str, Any]]) -> str:
    """The traceback in a JSON log event as Python would print it, the cause first."""
    lines = []
    for stack in reversed(stacks):
        lines.append("Traceback (most recent call last):")
        lines += [f'  File "{f["filename"]}", line {f["lineno"]}, in {f["name"]}' for f in stack["frames"]]
        lines.append(f"{stack['exc_type']}: {stack['exc_value']}")
    return "\n".join(lines)
