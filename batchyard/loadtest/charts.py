"""What is drawn of results, whoever draws it: curves over a sweep, percentiles and the timeline of a run."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from batchyard.loadtest.outcomes import Floats, Outcome
from batchyard.loadtest.results import Result, Run
from batchyard.loadtest.statistics import Spread
from batchyard.loadtest.sweep import find_knee

Pick = Callable[[Run], Spread | None]

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#777777")
"""Told apart by colour-blind readers too: M. Okabe and K. Ito, Color Universal Design, 2008."""

_BARS = 300  # of a timeline: more would be a blur
_SLICES = 60  # of a timeline's time
_PERCENTILES = (0, 1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 85, 90, 93, 95, 97, 98, 99, 99.5, 100)


@dataclass(frozen=True, slots=True)
class Series:
    """A curve of points (x, y). `labels` are written beside them; `mark` is the point that stands out."""

    name: str
    colour: str
    points: Sequence[tuple[float, float]]
    labels: Sequence[str] = ()
    dashed: bool = False
    mark: int | None = None


@dataclass(frozen=True, slots=True)
class Chart:
    """Curves over common axes."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    log_y: bool = False
    log_x: bool = False


@dataclass(frozen=True, slots=True)
class Bar:
    """A request in a timeline: seconds since the start; without a `first` token it was not answered."""

    sent: float
    first: float | None
    end: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """A run over time: bars of requests, and curves over `times`, the middles of its slices in seconds."""

    title: str
    bars: Sequence[Bar]
    requests: int  # of which the bars are a sample
    times: Sequence[float]
    tokens_per_s: Sequence[float]
    running: Sequence[float]


def sweep_charts(results: Sequence[Result]) -> list[Chart]:
    """Latency against throughput, and throughput by load; of results with one run only, nothing."""
    swept = [result for result in results if len(fit_runs(result)) > 1]
    if not swept:
        return []
    charts = [
        _against_throughput("TTFT", swept, lambda run: run.summary.ttft_ms),
        _against_throughput("ITL", swept, lambda run: run.summary.itl_ms),
    ]
    kinds = {run.point.kind for result in swept for run in result.runs}
    if len(kinds) == 1:
        charts.append(_by_load(swept, kinds.pop()))
    return charts


def fit_runs(result: Result) -> list[Run]:
    """The runs in which something was answered."""
    return [run for run in result.runs if run.summary.ok]


def _against_throughput(name: str, results: Sequence[Result], pick: Pick) -> Chart:
    series = []
    for number, result in enumerate(results):
        runs, knee = fit_runs(result), find_knee(result.runs)
        mark = next((n for n, run in enumerate(runs) if run is knee), None)
        for quantile, colour, dashed in (("p50", 0, False), ("p99", 1, True)):
            several = len(results) > 1
            series.append(
                Series(
                    f"{result.name} {quantile}" if several else quantile,
                    PALETTE[(number if several else colour) % len(PALETTE)],
                    [(run.summary.output_tok_per_s, _quantile(pick(run), quantile)) for run in runs],
                    [f"{run.point.value:g}" for run in runs],
                    several and dashed,
                    mark,
                )
            )
    return Chart(f"{name} against throughput", "output tokens/s", f"{name}, ms", series, log_y=True)


def _by_load(results: Sequence[Result], kind: str) -> Chart:
    x_label = {"concurrency": "requests at once", "rate": "requests/s offered"}.get(kind, "times the pace")
    series = [
        Series(
            result.name,
            PALETTE[number % len(PALETTE)],
            [(run.point.value, run.summary.output_tok_per_s) for run in fit_runs(result)],
        )
        for number, result in enumerate(results)
    ]
    log_x = kind == "concurrency"
    return Chart("Throughput by load", x_label, "output tokens/s", series, log_x=log_x)


def percentile_charts(results: Sequence[Result]) -> list[Chart]:
    """TTFT and ITL by percentile, of each result's knee or only run."""
    chosen = [(result.name, run) for result in results if (run := main_run(result))]
    charts = []
    for name in ("TTFT", "ITL"):
        series = [
            Series(
                f"{title}, {run.point}",
                PALETTE[n % len(PALETTE)],
                list(zip(_PERCENTILES, _percentiles(name, run.outcomes), strict=True)),
            )
            for n, (title, run) in enumerate(chosen)
            if len(_percentiles(name, run.outcomes))
        ]
        if series:
            charts.append(Chart(f"{name} by percentile", "percentile", f"{name}, ms", series, log_y=True))
    return charts


def main_run(result: Result) -> Run | None:
    """The run that stands for a result: its knee, else its last that was answered."""
    return find_knee(result.runs) or next(reversed(fit_runs(result)), None)


def _percentiles(name: str, outcomes: Iterable[Outcome]) -> list[float]:
    good = [outcome for outcome in outcomes if outcome.ok]
    values = (
        [o.ttft for o in good] if name == "TTFT" else np.concatenate([o.gaps for o in good] or [np.empty(0)])
    )
    # Below what a packet takes nothing is told apart, and a logarithm has no zero.
    return [max(0.01, float(v)) for v in 1000 * np.percentile(values, _PERCENTILES)] if len(values) else []


def timeline(result: Result, run: Run) -> Timeline | None:
    """A run over time; None where nothing was answered."""
    outcomes = sorted(run.outcomes, key=lambda outcome: outcome.sent)
    if not run.summary.ok:
        return None
    start, end = outcomes[0].sent, max(outcome.end for outcome in outcomes)
    edges = np.linspace(0, max(end - start, 1e-3), _SLICES + 1)
    step = max(1, -(-len(outcomes) // _BARS))
    bars = [
        Bar(o.sent - start, o.stamps[0] - start if o.stamps else None, o.end - start)
        for o in outcomes[::step]
    ]
    return Timeline(
        f"{result.name}, {run.point}",
        bars,
        len(outcomes),
        [float(t) for t in (edges[:-1] + edges[1:]) / 2],
        _tokens_per_s(outcomes, start, edges),
        _running(outcomes, start, edges),
    )


def _tokens_per_s(outcomes: Sequence[Outcome], start: float, edges: Floats) -> list[float]:
    stamps = [np.asarray(o.stamps) - start for o in outcomes if o.stamps]
    weights = [np.full(len(o.stamps), o.output_tokens / len(o.stamps)) for o in outcomes if o.stamps]
    counts, _ = np.histogram(np.concatenate(stamps), edges, weights=np.concatenate(weights))
    return [float(value) for value in counts / (edges[1] - edges[0])]


def _running(outcomes: Sequence[Outcome], start: float, edges: Floats) -> list[float]:
    middles = (edges[:-1] + edges[1:]) / 2
    sent = np.sort([o.sent - start for o in outcomes])
    ended = np.sort([o.end - start for o in outcomes])
    begun, over = np.searchsorted(sent, middles), np.searchsorted(ended, middles)
    return [float(value) for value in begun - over]


def _quantile(spread: Spread | None, name: str) -> float:
    return max(0.01, getattr(spread, name)) if spread else float("nan")


def ticks(low: float, high: float, log: bool) -> Iterator[float]:
    """Round numbers for an axis, some five of them."""
    if log:
        decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
        steps = (1, 2, 5) if len(decades) <= 4 else (1,)
        values = [step * 10.0**decade for decade in decades for step in steps]
    else:
        rough = (high - low) / 7
        size = 10.0 ** np.floor(np.log10(rough))
        size *= next(n for n in (1, 2, 5, 10) if n * size >= rough)
        values = [n * size for n in range(int(np.ceil(low / size)), int(high / size + 1e-9) + 1)]
    yield from (value for value in values if low * (1 - 1e-9) <= value <= high * (1 + 1e-9))
