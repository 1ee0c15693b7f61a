"""Writes dashboards/batchyard.json: `python deploy/grafana/dashboard.py`. What it shows is in `ROWS`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "dashboards" / "batchyard.json"
_DATASOURCE = {"type": "prometheus", "uid": "prometheus"}
_WIDTH, _HEIGHT, _ACROSS = 8, 7, 3
_RATE = "$__rate_interval"

TTFT = "batchyard_gateway_time_to_first_token_seconds"
IN_TIME = '{le="1.0"}'


@dataclass(frozen=True, slots=True)
class Panel:
    """Curves over time, or with `now` the last values as numbers. `queries` are by their legend."""

    title: str
    queries: dict[str, str]
    unit: str = "short"
    text: str = ""
    now: bool = False
    most: float | None = None
    stacked: bool = False


def rate(name: str, by: str = "") -> str:
    """Of a counter, a second."""
    return f"sum{f' by ({by})' if by else ''} (rate({name}[{_RATE}]))"


def quantiles(name: str, *shares: float) -> dict[str, str]:
    """Percentiles of a histogram, over all series."""
    return {f"p{100 * share:g}": _quantile(share, name, "le") for share in shares or (0.5, 0.95, 0.99)}


def mean(name: str, by: str) -> str:
    """Of a histogram."""
    return f"{rate(f'{name}_sum', by)} / {rate(f'{name}_count', by)}"


def _quantile(share: float, name: str, by: str) -> str:
    return f"histogram_quantile({share:g}, sum by ({by}) (rate({name}_bucket[{_RATE}])))"


ROWS: dict[str, list[Panel]] = {
    "Overview": [
        Panel(
            "Requests",
            {"{{state}}": "sum by (state) (batchyard_requests)"},
            now=True,
            text="At the active scheduler.",
        ),
        Panel(
            "Workers",
            {
                "connected": "sum(batchyard_worker_connected)",
                "wanted": "max(batchyard_workers_wanted)",
            },
            now=True,
            text="As many as the load needs, and as many as there are: docs/metrics.md#autoscaling.",
        ),
        Panel(
            "First tokens within a second",
            {"share": f"{rate(f'{TTFT}_bucket{IN_TIME}')} / {rate(f'{TTFT}_count')}"},
            unit="percentunit",
            now=True,
            text="The objective is 95%.",
        ),
        Panel(
            "Tokens per second",
            {
                "generated": rate("batchyard_generated_tokens_total"),
                "computed, {{kind}}": rate("batchyard_computed_tokens_total", "kind"),
            },
        ),
        Panel(
            "Queue",
            {
                "requests": 'sum(batchyard_requests{state="waiting"})',
                "thousand tokens": "sum(batchyard_queue_tokens) / 1000",
            },
        ),
        Panel(
            "Answers and refusals per second",
            {
                "{{status}}": rate("batchyard_gateway_requests_total", "status"),
                "refused: {{reason}}": rate("batchyard_refused_requests_total", "reason"),
            },
            unit="reqps",
        ),
    ],
    "Latency": [
        Panel(
            "Time to first token",
            quantiles(TTFT),
            "s",
            "From the request's arrival at the gateway.",
        ),
        Panel(
            "Between tokens (ITL)",
            quantiles("batchyard_gateway_inter_token_latency_seconds"),
            "s",
            "As clients see it. Alerts: 200 ms, 500 ms.",
        ),
        Panel(
            "Per token of one answer (TPOT)",
            quantiles("batchyard_gateway_time_per_output_token_seconds"),
            "s",
        ),
        Panel("Time to last token", quantiles("batchyard_gateway_time_to_last_token_seconds"), "s"),
        Panel(
            "In the queue",
            quantiles("batchyard_queue_time_seconds"),
            "s",
            "From arrival at the scheduler to a row.",
        ),
        Panel("Prefill", quantiles("batchyard_prefill_time_seconds"), "s", "From a row to the first token."),
    ],
    "Cache": [
        Panel(
            "Prompt tokens not computed",
            {
                "{{tier}}": f"{rate('batchyard_prefix_hit_tokens_total', 'tier')} "
                f"/ on () group_left () {rate('batchyard_prompt_tokens_total')}"
            },
            unit="percentunit",
            text="Found in the cache, by the tier where.",
            most=1,
            stacked=True,
        ),
        Panel(
            "KV blocks",
            {"{{state}}": "sum by (state) (batchyard_kv_blocks)"},
            stacked=True,
            text="Held by requests, cached for later ones, free.",
        ),
        Panel(
            "Evictions per second",
            {"{{tier}}": rate("batchyard_evicted_blocks_total", "tier")},
            text="Blocks that lost a cached prefix to others.",
        ),
        Panel(
            "Moves to and from host memory",
            {"{{direction}}": rate("batchyard_moved_blocks_total", "direction")},
            text="Blocks per second; none without --host-cache-gb.",
        ),
        Panel(
            "Longest moves (p95)",
            {"{{direction}}": _quantile(0.95, "batchyard_move_latency_seconds", "le, direction")},
            "s",
            "Alerts: 500 ms, 1 s.",
        ),
        Panel(
            "Preemptions per second",
            {"{{cause}}": rate("batchyard_preemptions_total", "cause")},
            text="memory: too much was promised. priority, fairness: on purpose.",
        ),
    ],
    "Per worker": [
        Panel("Rows in use", {"{{worker}}": "batchyard_rows"}),
        Panel("KV cache in use", {"{{worker}}": "batchyard_kv_usage_ratio"}, "percentunit", most=1),
        Panel("Rows of a step, mean", {"{{worker}}": mean("batchyard_step_rows", "worker")}),
        Panel(
            "Step, computing (p95)",
            {"{{instance}}": _quantile(0.95, "batchyard_worker_step_seconds", "le, instance")},
            "s",
            "Model and sampling.",
        ),
        Panel(
            "Computing",
            {"{{worker}}": rate("batchyard_busy_seconds_total", "worker")},
            "percentunit",
            "Share of the time. One request alone keeps a worker at 100%: no measure of load.",
            most=1,
        ),
        Panel(
            "Device idle although work had come",
            {"{{instance}}": rate("batchyard_worker_device_idle_seconds_total", "instance")},
            "percentunit",
        ),
        Panel(
            "State",
            {
                "{{worker}} connected": "max by (worker) (batchyard_worker_connected)",
                "{{worker}} draining": "max by (worker) (batchyard_worker_draining)",
            },
        ),
        Panel("Losses", {"{{worker}}": "sum by (worker) (batchyard_worker_losses_total)"}),
        Panel(
            "Event loops and CPUs",
            {"{{instance}} {{of}}": 'batchyard_cpu_saturation_ratio{job="cpu"}'},
            "percentunit",
            "Of every process. An event loop is one thread: full at 100% of one core.",
        ),
    ],
    "Per tenant": [
        Panel(
            "Tokens per second",
            {
                "{{tenant}} prompts": rate("batchyard_gateway_prompt_tokens_total", "tenant"),
                "{{tenant}} answers": rate("batchyard_gateway_completion_tokens_total", "tenant"),
            },
            text="Counted when a request is over.",
        ),
        Panel(
            "Requests",
            {"{{tenant}} {{state}}": "sum by (tenant, state) (batchyard_tenant_requests)"},
        ),
        Panel(
            "Oldest wait",
            {"{{tenant}}": "max by (tenant) (batchyard_tenant_oldest_wait_seconds)"},
            "s",
        ),
    ],
}


def dashboard() -> dict[str, Any]:
    """As Grafana reads it."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        panels.append(
            {"type": "row", "title": title, "collapsed": False, "gridPos": _place(0, y, 24, 1), "panels": []}
        )
        for number, panel in enumerate(row):
            below, across = divmod(number, _ACROSS)
            place = _place(across * _WIDTH, y + 1 + below * _HEIGHT, _WIDTH, _HEIGHT)
            panels.append(_panel(panel, place))
        y += 1 + -(-len(row) // _ACROSS) * _HEIGHT
    for number, described in enumerate(panels, start=1):
        described["id"] = number
    return {
        "uid": "batchyard",
        "title": "Batchyard",
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "browser",
        "graphTooltip": 1,
        "panels": panels,
    }


def _panel(panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.most is not None:
        defaults["max"] = panel.most
    if not panel.now:
        stacking = {"mode": "normal" if panel.stacked else "none"}
        defaults["custom"] = {"stacking": stacking, "fillOpacity": 20 if panel.stacked else 5}
    return {
        "type": "stat" if panel.now else "timeseries",
        "title": panel.title,
        "description": panel.text,
        "datasource": _DATASOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + number), "expr": expr, "legendFormat": legend}
            for number, (legend, expr) in enumerate(panel.queries.items())
        ],
    }


def _place(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def text() -> str:
    """The file's content."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
