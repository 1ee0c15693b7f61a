"""The records as a table in Markdown."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from bench.chaos.playing import Record

_COLUMNS = (
    "fault",
    "times",
    "streams",
    "lost",
    "differing",
    "silence p50",
    "p99",
    "longest",
    "full capacity p50",
    "latest",
    "unaccounted",
)
_MOST = 3  # examples of what went wrong


def head() -> str:
    """The first two lines."""
    return f"| {' | '.join(_COLUMNS)} |\n|---|{'--:|' * (len(_COLUMNS) - 1)}"


def line(record: Record, calm: Record) -> str:
    """Silence is what a stream's longest gap has over the median one in `calm`, where nothing is wrong."""
    usual = float(np.median(calm.silences))
    silences = [max(0.0, value - usual) for value in _spread(record.silences)]
    recovered = _spread(record.recoveries)
    cells = [record.name, record.times, record.streams, len(record.lost), len(record.differing)]
    cells += [f"{value:.2f} s" for value in (*silences, recovered[0], recovered[2])]
    return f"| {' | '.join(map(str, [*cells, len(record.unaccounted)]))} |"


def usual_gaps(calm: Sequence[Record]) -> str:
    """A sentence about the longest gaps of streams where nothing is wrong."""
    p50, p99, longest = _spread([gap for record in calm for gap in record.silences])
    spread = f"{p50:.2f} s (p50), {p99:.2f} s (p99), {longest:.2f} s (longest)"
    return f"While nothing is wrong, the longest gap in a stream is {spread}."


def troubles(record: Record) -> list[str]:
    """Sentences about what is of note, then about all that should not be, most frequent first."""
    kinds = (("lost", record.lost), ("differs", record.differing), ("left", record.unaccounted))
    notes = [f"{record.name}: {record.cut} streams were cut off with it"] if record.cut else []
    if record.freed:
        notes.append(f"{record.name}: their requests were gone after {max(record.freed):.2f} s at most")
    return notes + [
        f"{record.name}: {what}, {times} times: {why}"
        for what, found in kinds
        for why, times in Counter(found).most_common(_MOST)
    ]


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, 99th percentile and largest; 0 where there is none."""
    if not values:
        return 0.0, 0.0, 0.0
    p50, p99 = np.percentile(values, [50, 99])
    return float(p50), float(p99), max(values)
