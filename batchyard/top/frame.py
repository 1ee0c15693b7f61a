"""The state as a picture of so many columns and lines."""

import time
from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from batchyard.top.client import State

_LEVELS = " ▁▂▃▄▅▆▇█"
_BAR = 16  # columns
_TENANTS = 5
_WATERFALL = 24  # columns
_WIDE = 110  # columns from which on there is room for it
_STATES = {"busy": "green", "idle": "default", "draining": "yellow", "away": "red", "stalled": "red"}
_SEGMENTS = {
    "tokenize": ("t", "white"),
    "limits": ("l", "magenta"),
    "queue": ("q", "yellow"),
    "wait": ("w", "yellow"),
    "prefill": ("p", "blue"),
    "decode": ("d", "green"),
    "paused": ("z", "red"),
}
_NOTHING = (" ", "default")


def frame(state: State, width: int, height: int, trouble: str | None = None) -> RenderableType:
    """All of it; with `trouble`, as it was when that began. What has no room is left out, from the end."""
    parts: list[RenderableType] = [
        _title(state, trouble),
        _totals(state["totals"]),
        _latency(state["latency"]),
    ]
    used = len(parts)
    if state.get("history"):
        parts.append(_history(state, width))
        used += 1
    for table, lines in ((_workers(state), len(state.get("workers", ()))), (_tenants(state), _TENANTS)):
        if table is not None:
            parts += ["", table]
            used += 2 + min(lines, table.row_count)
    if state["requests"] and (room := height - used - 4) > 0:
        parts += ["", _requests(state["requests"][:room], width)]
        if width >= _WIDE:
            parts.append(_legend())
    return Group(*parts)


def without_state(trouble: str) -> RenderableType:
    """What is shown before anything is known."""
    return Text(trouble, "bold red")


def _title(state: State, trouble: str | None) -> Text:
    title = _line().append("Batchyard ", "bold").append(f"{state['model']}  ", "dim")
    if trouble:
        title.append(trouble, "bold red")
    elif state["ready"]:
        title.append("ready", "bold green")
    else:
        title.append(f"not ready: {state['reason']}", "bold red")
    whose = f"  key {state['key']}" if state["key"] is not None else ""
    heard, of = state["gateways"]["heard"], state["gateways"]["of"]
    gateways = f"  requests of {heard} of {of} gateways" if heard < of else ""
    title.append(f"{whose}{gateways}  {_clock(state['time'])}", "dim")
    return title


def _totals(totals: dict[str, float]) -> Text:
    numbers = _line()
    for name, key in (("tokens/s", "tokens_per_second"), ("running", "running"), ("waiting", "waiting")):
        if key in totals:
            numbers.append(f"{name} ", "dim").append(f"{totals[key]:,.0f}   ", "bold")
    return numbers


def _latency(latency: dict[str, dict[str, float | None]]) -> Text:
    numbers = _line()
    for name, told in (("first token", latency["ttft"]), ("between tokens", latency["itl"])):
        numbers.append(f"{name} p50 ", "dim").append(f"{_ms(told['p50'])}", "bold")
        numbers.append(" p99 ", "dim").append(f"{_ms(told['p99'])}   ", "bold")
    return numbers


def _line() -> Text:
    return Text(no_wrap=True, overflow="ellipsis")


def _history(state: State, width: int) -> Text:
    values: Sequence[float | None] = state["history"]["tokens_per_second"]
    shown = values[-max(1, width - 28) :]
    most = max((value for value in shown if value is not None), default=0)
    steps = len(_LEVELS) - 1
    line = "".join(" " if v is None else _LEVELS[round(steps * v / most) if most else 0] for v in shown)
    return Text.assemble(("tokens/s, 2 minutes  ", "dim"), (line, "cyan"))


def _table(*columns: str, right: Sequence[str] = ()) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for name in columns:
        table.add_column(
            name, justify="right" if name in right else "left", no_wrap=True, overflow="ellipsis"
        )
    return table


def _workers(state: State) -> Table | None:
    if not state.get("workers"):
        return None
    numbers = ("rows", "batch", "step", "tokens/s")
    table = _table("worker", "state", "kv cache", "held", *numbers, right=("held", *numbers))
    for worker in state["workers"]:
        step, blocks = worker["step"], worker["blocks"]
        table.add_row(
            Text(worker["id"], "bold"),
            Text(worker["state"], _STATES.get(worker["state"], "default")),
            _blocks(blocks),
            f"{100 * blocks['held'] / blocks['total']:.0f}%" if blocks["total"] else "-",
            f"{worker['rows']}/{worker['max_rows']}",
            f"{_number(step['rows'], 'row')}, {_number(step['tokens'], 'token')}" if step else "-",
            _ms(step["duration"]) if step else "-",
            f"{worker['tokens_per_second']:,.0f}",
        )
    return table


def _blocks(blocks: dict[str, int]) -> Text:
    total = max(1, blocks["total"])
    held = round(_BAR * blocks["held"] / total)
    cached = min(_BAR - held, round(_BAR * blocks["cached"] / total))
    rest = "·" * (_BAR - held - cached)
    return Text.assemble(("█" * held, "green"), ("▒" * cached, "green"), (rest, "dim"))


def _tenants(state: State) -> Table | None:
    if not state.get("tenants"):
        return None
    numbers = ("waiting", "running", "weight")
    table = _table("tenant", *numbers, right=numbers)
    for tenant in state["tenants"][:_TENANTS]:
        name = Text(tenant["name"] or "everybody", "bold")
        table.add_row(name, str(tenant["waiting"]), str(tenant["running"]), f"{tenant['weight']:g}")
    return table


def _requests(requests: Sequence[dict[str, Any]], width: int) -> Table:
    numbers = ("in", "out", "ttft", "total")
    waterfall = ("where the time went",) if width >= _WIDE else ()
    table = _table("ended", "request", "tenant", "status", *numbers, *waterfall, right=numbers)
    table.columns[1].max_width = max(12, width - 68 - (_WATERFALL if waterfall else 0))
    for request in requests:
        good = request["error"] is None and request["status"] in (200, "OK")
        table.add_row(
            _clock(request["arrived"] + request["duration"]),
            Text(request["id"]),
            Text(request["tenant"] or "-"),
            Text(str(request["status"]), "green" if good else "red"),
            str(request["prompt_tokens"]),
            str(request["completion_tokens"]),
            _ms(request["ttft"]),
            _ms(request["duration"]),
            *([_waterfall(request)] if waterfall else []),
        )
    return table


def _waterfall(request: dict[str, Any]) -> Text:
    """Each column has the colour, and the letter, of what the time there went to."""
    line = Text()
    for column in range(_WATERFALL):
        at = (column + 0.5) / _WATERFALL * request["duration"]
        name = next((n for n, start, length in request["segments"] if start <= at < start + length), "")
        letter, colour = _SEGMENTS.get(name, _NOTHING)
        line.append(letter, "" if letter == " " else f"black on {colour}")
    return line


def _legend() -> Text:
    legend = _line()
    for name, (letter, colour) in _SEGMENTS.items():
        legend.append(letter, f"black on {colour}").append(f" {name}  ", "dim")
    return legend


def _number(number: int, what: str) -> str:
    return f"{number:,} {what if number == 1 else f'{what}s'}"


def _ms(value: float | None) -> str:
    if value is None:
        return "-"
    if value < 1000:
        return f"{value:.1f} ms" if value < 10 else f"{value:.0f} ms"
    return f"{value / 1e3:.2f} s"


def _clock(ms: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(ms / 1e3))
