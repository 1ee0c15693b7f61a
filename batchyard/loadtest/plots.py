"""Charts as PNG, by matplotlib, which only these need: the extra `batchyard[bench]`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from batchyard.errors import ConfigError
from batchyard.loadtest.charts import (
    Chart,
    Series,
    Timeline,
    main_run,
    percentile_charts,
    sweep_charts,
    timeline,
)
from batchyard.loadtest.results import Result
from batchyard.loadtest.svg import number

_DPI = 110
_WAITS, _DECODES, _LOST = "#E69F00", "#0072B2", "#999999"


def write_plots(results: Sequence[Result], stem: Path) -> list[Path]:
    """Writes STEM.png, the charts, and STEM-timeline.png for the first result. Raises ConfigError."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("no PNG: matplotlib is missing; pip install 'batchyard[bench]'") from error
    written = []
    if charts := sweep_charts(results) or percentile_charts(results):
        figure = Figure(figsize=(5.2 * len(charts), 3.9), dpi=_DPI, layout="constrained")
        axes = figure.subplots(1, len(charts), squeeze=False)[0]
        for axis, chart in zip(axes, charts, strict=True):
            _draw(axis, chart)
        written.append(_save(figure, Path(f"{stem}.png")))
    run = main_run(results[0])
    if run and (over_time := timeline(results[0], run)):
        figure = Figure(figsize=(9, 6), dpi=_DPI, layout="constrained")
        _draw_timeline(figure, over_time)
        written.append(_save(figure, Path(f"{stem}-timeline.png")))
    return written


def _save(figure: Any, path: Path) -> Path:
    try:
        figure.savefig(path)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    return path


def _draw(axis: Any, chart: Chart) -> None:
    for series in chart.series:
        _draw_series(axis, series)
    axis.set_title(chart.title, fontsize=11, loc="left", weight="bold")
    axis.set_xlabel(chart.x_label)
    axis.set_ylabel(chart.y_label)
    if chart.log_x:
        axis.set_xscale("log", base=2)
    elif all(x >= 0 for series in chart.series for x, _ in series.points):
        axis.set_xlim(left=0)
    if chart.log_y:
        axis.set_yscale("log")
        axis.yaxis.set_minor_formatter("")
        axis.yaxis.set_minor_locator(_log_locator(chart))
        axis.yaxis.set_minor_formatter(_short)
    else:
        axis.set_ylim(bottom=0)
    axis.xaxis.set_major_formatter(_short)
    axis.yaxis.set_major_formatter(_short)
    axis.margins(y=0.12)  # for the numbers beside the points
    axis.grid(visible=True, which="both", color="#dddddd", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9)


def _log_locator(chart: Chart) -> Any:
    """2 and 5 are written beside the powers of ten where there are few of these."""
    from matplotlib.ticker import LogLocator

    values = [y for series in chart.series for _, y in series.points if y == y]
    return LogLocator(subs=(2.0, 5.0) if max(values) / min(values) < 3000 else ())


def _short(value: float, _: int | None = None) -> str:
    return number(value)


def _draw_series(axis: Any, series: Series) -> None:
    xs, ys = [x for x, _ in series.points], [y for _, y in series.points]
    style = "--" if series.dashed else "-"
    axis.plot(xs, ys, style, color=series.colour, marker="o", markersize=4, label=series.name, linewidth=1.6)
    if series.mark is not None:
        ring = {"markersize": 11, "markerfacecolor": "none", "markeredgecolor": "#222222"}
        axis.plot(xs[series.mark], ys[series.mark], "o", **ring)
    for x, y, label in zip(xs, ys, series.labels, strict=False):
        place = {"textcoords": "offset points", "xytext": (0, 9), "ha": "center"}
        axis.annotate(label, (x, y), fontsize=7, color="#555555", **place)


def _draw_timeline(figure: Any, over_time: Timeline) -> None:
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.3))
    bars = over_time.bars
    rows = range(len(bars))
    firsts = [bar.end if bar.first is None else bar.first for bar in bars]
    colours = [_LOST if bar.first is None else _WAITS for bar in bars]
    waits = [first - bar.sent for first, bar in zip(firsts, bars, strict=True)]
    streams = [bar.end - first for first, bar in zip(firsts, bars, strict=True)]
    upper.barh(rows, waits, left=[bar.sent for bar in bars], color=colours, height=1.0, linewidth=0)
    upper.barh(rows, streams, left=firsts, color=_DECODES, height=1.0, linewidth=0)
    upper.invert_yaxis()
    some = f", {len(bars)} of {over_time.requests} requests" if len(bars) < over_time.requests else ""
    upper.set_title(f"Timeline: {over_time.title}{some}", fontsize=11, loc="left", weight="bold")
    upper.set_ylabel("requests, as they came")
    handles = [_swatch(_WAITS, "waits for its first token"), _swatch(_DECODES, "streams")]
    if any(bar.first is None for bar in bars):
        handles.append(_swatch(_LOST, "not answered"))
    upper.legend(handles=handles, frameon=False, fontsize=9, loc="upper right")
    right = lower.twinx()
    (tokens,) = lower.plot(over_time.times, over_time.tokens_per_s, color="#009E73", linewidth=1.3)
    (running,) = right.plot(over_time.times, over_time.running, color="#CC79A7", linewidth=1.3)
    for axis, label, line in ((lower, "tokens/s", tokens), (right, "requests at once", running)):
        axis.set_ylabel(label, color=line.get_color())
        axis.set_ylim(bottom=0)
        axis.yaxis.set_major_formatter(_short)
    lower.set_xlabel("seconds")
    for axis in (upper, lower, right):
        axis.spines["top"].set_visible(False)
    upper.spines["right"].set_visible(False)


def _swatch(colour: str, label: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=colour, label=label)
