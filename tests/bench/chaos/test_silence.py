"""Which gaps of a stream are silence."""

import pytest

from bench.chaos.clients import Stream
from bench.chaos.playing import Record
from bench.chaos.table import head, line, troubles

CHUNKS = {0: [1.0, 1.5, 4.0, 4.1], 1: [1.2, 4.2]}


@pytest.mark.parametrize(
    ("since", "until", "longest"),
    [(2.0, 3.0, 3.0), (4.05, 5.0, 2.999), (4.3, 5.0, 0.0), (0.1, 0.9, 1.2)],
    ids=["in the middle", "of the other choice", "after the end", "before the first"],
)
def test_the_longest_gap_of_any_choice_that_touches_the_time(since, until, longest):
    stream = Stream(0, "gateway-0", asked=0.0, chunks=CHUNKS, ended=4.2)
    assert stream.longest_gap(since, until) == pytest.approx(longest, abs=0.01)


def test_who_asks_during_the_fault_waits_in_a_queue():
    stream = Stream(0, "gateway-0", asked=0.5, chunks={0: [9.0, 9.1]}, ended=9.1)
    assert stream.longest_gap(0.2, 9.0) == pytest.approx(0.1)


def test_an_error_ends_a_gap():
    stream = Stream(0, "gateway-0", asked=0.0, chunks={0: [1.0]}, ended=6.0, error="it hung")
    assert stream.longest_gap(2.0, 3.0) == 5.0
    assert Stream(0, "gateway-0", asked=0.0, ended=6.0, error="it hung").longest_gap(2.0, 3.0) == 6.0


def test_a_line_has_what_is_above_the_usual_gap():
    calm = Record("nothing", silences=[0.1, 0.2, 0.3])
    record = Record("a fault", 2, 3, 0, ["x", "x", "y"], [], [0.5, 1.2, 0.1], [4.0, 6.0])
    cells = [cell.strip() for cell in line(record, calm).strip("|").split("|")]
    assert cells == ["a fault", "2", "3", "3", "0", "0.30 s", "0.99 s", "1.00 s", "5.00 s", "6.00 s", "0"]
    assert len(cells) == head().splitlines()[0].count("|") - 1
    assert troubles(record) == ["a fault: lost, 2 times: x", "a fault: lost, 1 times: y"]
