"""Charts as SVG, which a page carries in itself.

Colours of axes and text are the page's own, light or dark.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from batchyard.loadtest.charts import Chart, Series, Timeline, ticks

_WIDTH, _HEIGHT = 640, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 40, 46
_WAITS, _DECODES, _LOST = "#E69F00", "#0072B2", "#999999"


@dataclass(frozen=True, slots=True)
class Axis:
    """From values to pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of `value`."""
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    @property
    def ticks(self) -> list[float]:
        """Where numbers stand."""
        return list(ticks(self.low, self.high, self.log))


def draw(chart: Chart) -> str:
    """A chart as an `<svg>` element."""
    points = [point for series in chart.series for point in series.points if not math.isnan(point[1])]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    x = _axis(xs, chart.log_x, _LEFT, _WIDTH - _RIGHT)
    y = _axis(ys, chart.log_y, _HEIGHT - _BOTTOM, _TOP)
    parts = [
        _text(_LEFT, 18, chart.title, "title"),
        *_frame(x, y, chart.x_label, chart.y_label),
        *(part for series in chart.series for part in _curve(series, x, y)),
        *_legend([(series.name, series.colour, series.dashed) for series in chart.series], 34),
    ]
    return _svg(parts, chart.title, _HEIGHT)


def _axis(values: Sequence[float], log: bool, start: float, end: float) -> Axis:
    low, high = min(values), max(values)
    if log:
        return Axis(low / 1.25, high * 1.25, start, end, log=True)
    return Axis(0.0, (high or 1.0) * 1.06, start, end)


def _frame(x: Axis, y: Axis, x_label: str, y_label: str) -> Iterator[str]:
    bottom = y.start
    for value in y.ticks:
        yield f'<line class="grid" x1="{x.start}" x2="{x.end}" y1="{y(value)}" y2="{y(value)}"/>'
        yield _text(x.start - 6, y(value) + 4, number(value), "y")
    for value in x.ticks:
        yield f'<line class="grid" x1="{x(value)}" x2="{x(value)}" y1="{bottom}" y2="{y.end}"/>'
        yield _text(x(value), bottom + 16, number(value), "x")
    yield _text((x.start + x.end) / 2, bottom + 36, x_label, "x")
    middle = (y.start + y.end) / 2
    yield f'<text class="x" transform="translate(14 {middle}) rotate(-90)">{escape(y_label)}</text>'


def _curve(series: Series, x: Axis, y: Axis) -> Iterator[str]:
    places = [(x(px), y(py), py, n) for n, (px, py) in enumerate(series.points) if not math.isnan(py)]
    line = " ".join(f"{px},{py}" for px, py, _, _ in places)
    dash = ' stroke-dasharray="6 4"' if series.dashed else ""
    yield f'<polyline fill="none" stroke="{series.colour}" stroke-width="2"{dash} points="{line}"/>'
    for px, py, value, n in places:
        label = series.labels[n] if series.labels else ""
        says = escape(f"{series.name}{', at ' + label if label else ''}: {number(value)}")
        if n == series.mark:
            yield f'<circle class="knee" cx="{px}" cy="{py}" r="8"/>'
        yield f'<circle fill="{series.colour}" cx="{px}" cy="{py}" r="3.5"><title>{says}</title></circle>'
        if label:
            yield _text(px, py - 8, label, "label")


def draw_timeline(timeline: Timeline) -> str:
    """A timeline as an `<svg>` element: requests as bars, below them tokens a second and requests at once."""
    bar = max(1.0, min(8.0, 360 / len(timeline.bars)))
    middle = _TOP + bar * len(timeline.bars)
    height = middle + 190
    end = max(bar.end for bar in timeline.bars)
    x = Axis(0.0, max(end, timeline.times[-1]), _LEFT, _WIDTH - 52)
    parts = [_text(_LEFT, 18, f"Timeline: {timeline.title}", "title")]
    for n, request in enumerate(timeline.bars):
        top, lost = _TOP + n * bar, request.first is None
        first = request.end if request.first is None else request.first
        parts.append(_bar(x, request.sent, first, top, bar, _LOST if lost else _WAITS))
        parts.append(_bar(x, first, request.end, top, bar, _DECODES))
    tokens = Axis(0.0, 1.05 * max(timeline.tokens_per_s), height - _BOTTOM, middle + 34)
    running = Axis(0.0, 1.05 * max(*timeline.running, 1.0), height - _BOTTOM, middle + 34)
    parts += _frame(x, tokens, "seconds", "tokens/s")
    parts += [_text(x.end + 4, running(value) + 4, number(value), "r") for value in running.ticks]
    for axis, values, colour in (
        (tokens, timeline.tokens_per_s, "#009E73"),
        (running, timeline.running, "#CC79A7"),
    ):
        line = " ".join(f"{x(t)},{axis(v)}" for t, v in zip(timeline.times, values, strict=True))
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{line}"/>')
    names = [("waits for its first token", _WAITS), ("streams", _DECODES), ("not answered", _LOST)]
    parts += _legend([(name, colour, False) for name, colour in names], 34)
    below = [("tokens/s", "#009E73"), ("requests at once (right)", "#CC79A7")]
    parts += _legend([(name, colour, False) for name, colour in below], middle + 24)
    return _svg(parts, timeline.title, height)


def _bar(x: Axis, start: float, end: float, top: float, height: float, colour: str) -> str:
    width = round(max(0.0, x(end) - x(start)), 1)
    return f'<rect fill="{colour}" x="{x(start)}" y="{top:.1f}" width="{width}" height="{height * 0.9:.1f}"/>'


def _legend(entries: Sequence[tuple[str, str, bool]], y: float) -> Iterator[str]:
    x = float(_LEFT)
    for name, colour, dashed in entries:
        dash = ' stroke-dasharray="5 3"' if dashed else ""
        ends = f'x1="{x:.1f}" x2="{x + 18:.1f}" y1="{y - 4:.1f}" y2="{y - 4:.1f}"'
        yield f'<line stroke="{colour}" stroke-width="3"{dash} {ends}/>'
        yield _text(x + 23, y, name, "legend")
        x += 40 + 6.6 * len(name)


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _svg(parts: Sequence[str], name: str, height: float) -> str:
    head = f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{escape(name)}">'
    return "\n".join([head, *parts, "</svg>"])


def number(value: float) -> str:
    """Short: three significant digits, thousands apart."""
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"
