"""The records as a table in Markdown."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from bench.chaos.playing import Record

_HEAD = (
    "| fault | times | streams | lost | differing | silence p50 | p99 | longest "
    "| full capacity p50 | latest | unaccounted |"
)
_MOST = 3  # examples of what went wrong


def table(records: Sequence[Record], calm: Record) -> str:
    """Silence is what a stream's longest gap has over the median one in `calm`, where nothing is wrong."""
    usual = float(np.median(calm.silences))
    lines = [_HEAD, "|---|" + "--:|" * (_HEAD.count("|") - 2)]
    lines += [_line(record, usual) for record in records]
    return "\n".join(lines)


def usual_gaps(calm: Record) -> str:
    """A sentence about the longest gaps of streams where nothing is wrong."""
    p50, p99, longest = (_seconds(value) for value in _spread(calm.silences))
    return f"Undisturbed, the longest gap in a stream is {p50} (median), {p99} (p99), {longest} (longest)."


def troubles(record: Record) -> list[str]:
    """Sentences about all that should not be, most frequent first."""
    kinds = (("lost", record.lost), ("differs", record.differing), ("left", record.unaccounted))
    return [
        f"{record.name}: {what}, {times} times: {why}"
        for what, found in kinds
        for why, times in Counter(found).most_common(_MOST)
    ]


def _line(record: Record, usual: float) -> str:
    silences = [max(0.0, value - usual) for value in _spread(record.silences)]
    recovered = np.median(record.recoveries), max(record.recoveries)
    cells = [record.name, record.times, record.streams, len(record.lost), len(record.differing)]
    cells += [_seconds(value) for value in (*silences, *map(float, recovered))]
    return f"| {' | '.join(map(str, [*cells, len(record.unaccounted)]))} |"


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    p50, p99 = np.percentile(values, [50, 99])
    return float(p50), float(p99), max(values)


def _seconds(value: float) -> str:
    return f"{value:.2f} s"
