"""Results as one HTML page that needs nothing else: no scripts, no fonts, no network."""

from collections.abc import Iterator, Sequence
from html import escape

from batchyard.loadtest.charts import main_run, percentile_charts, sweep_charts, timeline
from batchyard.loadtest.results import Result, Run
from batchyard.loadtest.statistics import Spread
from batchyard.loadtest.svg import draw, draw_timeline
from batchyard.loadtest.sweep import find_knee
from batchyard.loadtest.table import notes

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --faint: #d9dee3; --paper: #ffffff; --dim: #5b6570; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ec; --faint: #343a41; --paper: #15181c; --dim: #9aa4ae; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
  max-width: 1340px; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p, dl { color: var(--dim); margin: .2rem 0; }
.charts { display: grid; gap: 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); }
figure { margin: 0; }
svg { width: 100%; height: auto; }
svg text { font: 12px system-ui, sans-serif; fill: var(--dim); }
svg text.title { font-size: 14px; font-weight: 600; fill: var(--ink); }
svg text.x, svg text.label { text-anchor: middle; } svg text.y { text-anchor: end; }
svg text.label { font-size: 10px; }
svg .grid { stroke: var(--faint); stroke-width: 1; }
svg .knee { fill: none; stroke: var(--ink); stroke-width: 1.5; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--faint); }
th:first-child, td:first-child { text-align: left; } tr.knee td { font-weight: 600; }
"""

_COLUMNS = (
    "",
    "requests",
    "req/s",
    "out tok/s",
    "in tok/s",
    *(f"{name} {quantile}" for name in ("TTFT", "ITL", "TPOT", "E2E") for quantile in ("p50", "p99")),
    "goodput",
    "failed",
    "refused",
)


def render(results: Sequence[Result]) -> str:
    """The page, of one result or of several beside each other."""
    title = " and ".join(result.name for result in results)
    body = [part for result in results for part in _result(result)]
    charts = [*sweep_charts(results), *percentile_charts(results)]
    drawn = [f"<figure>{draw(chart)}</figure>" for chart in charts]
    mains = [(result, run) for result in results if (run := main_run(result))]
    timelines = [over_time for result, run in mains if (over_time := timeline(result, run))]
    drawn += [f"<figure>{draw_timeline(over_time)}</figure>" for over_time in timelines]
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}: load test</title><style>{_STYLE}</style></head><body>",
            *body,
            "<h2>Charts</h2><p>A ring is the knee. Numbers beside points are the load there.</p>",
            '<div class="charts">',
            *drawn,
            "</div></body></html>",
            "",
        ]
    )


def _result(result: Result) -> Iterator[str]:
    yield f"<h1>{escape(result.name)}</h1>"
    started = result.runs[0].started if result.runs else ""
    yield f"<p>{escape(result.model)} at {escape(result.url)}, {escape(started)}</p>"
    asked = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in result.workload.items())
    yield f"<p>{escape(asked)}</p>"
    if result.objectives:
        yield f"<p>Objectives, in ms: {escape(str(result.objectives))}</p>"
    yield '<div class="scroll"><table><thead><tr>'
    yield from (f"<th>{name}</th>" for name in _COLUMNS)
    yield "</tr></thead><tbody>"
    knee = find_knee(result.runs) if len(result.runs) > 1 else None
    for run in result.runs:
        yield f"<tr{' class=knee' if run is knee else ''}>"
        yield from (f"<td>{escape(cell)}</td>" for cell in _cells(run))
        yield "</tr>"
    yield "</tbody></table></div><p>Latencies in milliseconds.</p>"
    for run in result.runs:
        yield from (f"<p>{escape(f'{run.point}: {note}')}</p>" for note in notes(run))


def _cells(run: Run) -> Iterator[str]:
    summary = run.summary
    yield str(run.point)
    yield str(summary.requests)
    yield from (
        f"{summary.req_per_s:,.2f}",
        f"{summary.output_tok_per_s:,.1f}",
        f"{summary.input_tok_per_s:,.1f}",
    )
    for spread in (summary.ttft_ms, summary.itl_ms, summary.tpot_ms, summary.e2e_ms):
        yield from _pair(spread)
    yield "" if summary.good is None else f"{summary.good:.1%}"
    yield from (str(summary.failed), str(summary.refused))


def _pair(spread: Spread | None) -> tuple[str, str]:
    return (f"{spread.p50:,.1f}", f"{spread.p99:,.1f}") if spread else ("", "")
