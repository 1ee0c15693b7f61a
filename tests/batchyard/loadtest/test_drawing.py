"""Charts as SVG in a page and as PNG."""

import re
import struct
import sys
import xml.etree.ElementTree as ET

import pytest

from batchyard.loadtest.charts import main_run, percentile_charts, sweep_charts, ticks, timeline
from batchyard.loadtest.page import render
from batchyard.loadtest.results import load_result
from batchyard.loadtest.saving import draw_all, main, save_all
from batchyard.loadtest.svg import number
from tests.batchyard.loadtest.made import lost, outcome, result, run


def requests(concurrency):
    return [outcome(n, sent=n * 0.2 / concurrency, ttft=0.05 * (1 + n % 3)) for n in range(20)]


@pytest.fixture
def swept():
    return result([run(requests(value), value) for value in (1, 2, 4)], name="ours <&>", input="5")


@pytest.fixture
def single():
    return result([run([*requests(1), lost(20, sent=1.0, end=1.5)])], name="one")


def elements(page):
    """All elements of the page's charts, which must be well-formed XML."""
    charts = [ET.fromstring(chart) for chart in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]
    return charts, [part for chart in charts for part in chart.iter()]


def test_the_page_needs_nothing_else(swept):
    page = render([swept])
    assert not re.search(r"<script|<link|<img|@import|\bsrc=|\bhref=|url\(", page)
    addresses = set(re.findall(r"https?://[^\s<\"]+", page))
    assert addresses == {"http://127.0.0.1:1,"}  # the server that was measured, as text
    charts, parts = elements(page)
    assert len(charts) == 6  # TTFT, ITL, throughput; two of percentiles; a timeline
    assert sum(part.attrib.get("class") == "knee" for part in parts) == 4  # p50 and p99 of two charts
    assert "ours &lt;&amp;&gt;" in page


def test_points_lie_where_they_should(swept):
    (ttft, *_) = elements(render([swept]))[0]
    lines = [part.attrib["points"].split() for part in ttft.iter() if part.tag == "polyline"]
    assert [len(line) for line in lines] == [3, 3]
    xs = [float(point.split(",")[0]) for point in lines[0]]
    assert xs == sorted(xs)
    below = [tuple(float(line[0].split(",")[1]) for line in lines)]
    assert below[0][0] > below[0][1]  # p50 is lower than p99, so further down
    assert all(0 <= float(value) <= 640 for line in lines for point in line for value in point.split(","))


def test_a_single_run_has_no_sweep(single):
    assert sweep_charts([single]) == []
    assert [chart.title for chart in percentile_charts([single])] == [
        "TTFT by percentile",
        "ITL by percentile",
    ]
    charts, _ = elements(render([single]))
    assert len(charts) == 3


def test_timeline(single):
    over_time = timeline(single, single.runs[0])
    assert over_time.requests == 21
    assert [bar for bar in over_time.bars if bar.first is None]
    slice_s = over_time.times[1] - over_time.times[0]
    assert sum(over_time.tokens_per_s) * slice_s == pytest.approx(100)  # all tokens of twenty requests
    assert 1 <= max(over_time.running) <= 3


def test_many_requests_are_a_sample():
    many = result([run([outcome(n, sent=n / 100) for n in range(1000)])])
    over_time = timeline(many, main_run(many))
    assert over_time.requests == 1000
    assert len(over_time.bars) <= 300


def test_nothing_answered_draws_nothing():
    empty = result([run([lost()])])
    assert (main_run(empty), timeline(empty, empty.runs[0])) == (None, None)
    assert elements(render([empty]))[0] == []


def test_several_results_on_one_page(swept, single):
    page = render([swept, result(swept.runs, name="theirs")])
    assert "theirs p99" in page
    assert len(elements(page)[0]) == 7


def png_size(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


def test_files(swept, tmp_path):
    lines = save_all(swept, tmp_path / "new" / "r")
    names = ["r.json", "r.html", "r.png", "r-timeline.png"]
    assert lines == [f"wrote {tmp_path / 'new' / name}" for name in names]
    width, height = png_size(tmp_path / "new" / "r.png")
    assert width > 2.5 * height
    again = load_result(tmp_path / "new" / "r.json")
    assert [r.summary.to_json() for r in again.runs] == [r.summary.to_json() for r in swept.runs]


def test_without_matplotlib_there_is_a_line(single, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    *written, problem = draw_all([single], tmp_path / "r")
    assert written == [f"wrote {tmp_path / 'r.html'}"]
    assert problem == "no PNG: matplotlib is missing; pip install 'batchyard[bench]'"


def test_plot_command(swept, single, tmp_path, capsys):
    swept.save(tmp_path / "a.json")
    single.save(tmp_path / "b.json")
    main([str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--save", str(tmp_path / "both")])
    assert "both.png" in capsys.readouterr().out
    assert (tmp_path / "both-timeline.png").exists()


@pytest.mark.parametrize(
    ("low", "high", "log", "expected"),
    [
        (0, 100, False, [0, 20, 40, 60, 80, 100]),
        (0, 0.7, False, [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]),
        (3, 600, True, [5, 10, 20, 50, 100, 200, 500]),
        (0.01, 1e5, True, [0.01, 0.1, 1, 10, 100, 1000, 10000, 100000]),
    ],
)
def test_ticks_are_round(low, high, log, expected):
    assert list(ticks(low, high, log)) == pytest.approx(expected)


def test_numbers_are_short():
    assert [number(v) for v in (12345.6, 100.4, 12.345, 0.01234, 3.0)] == [
        "12,346",
        "100",
        "12.3",
        "0.0123",
        "3",
    ]
