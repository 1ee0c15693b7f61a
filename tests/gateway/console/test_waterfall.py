"""Segments from marks and from the scheduler's account; times in milliseconds."""

import pytest

from gateway.console.waterfall import Waterfall
from protos.scheduling_pb2 import Timing


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("time.perf_counter", clock)
    return clock


@pytest.fixture
def asked(clock):
    """2 ms to tokens from the first on, 4 ms for the limits from the fifth on."""
    waterfall = Waterfall(100.0)
    clock.now = 100.001
    with waterfall.segment("tokenize"):
        clock.now = 100.003
    clock.now = 100.004
    waterfall.asked()
    with waterfall.segment("limits"):
        clock.now = 100.008
    return waterfall


def told(segments):
    return [(name, round(start), round(length)) for name, start, length in segments]


BEFORE = [("tokenize", 1, 2), ("limits", 4, 4)]


def test_one_that_ran_through(asked):
    timing = Timing(queued_ms=12, prefill_ms=9, decode_ms=28)
    segments = told(asked.segments((100.030, 100.060), 100.061, timing))
    assert segments == [*BEFORE, ("queue", 8, 12), ("prefill", 20, 9), ("decode", 30, 30)]


def test_one_that_was_paused(asked):
    timing = Timing(queued_ms=42, requeued_ms=40, prefill_ms=15, decode_ms=30)
    segments = told(asked.segments((100.020, 100.100), 100.101, timing))
    assert segments == [*BEFORE, ("queue", 8, 2), ("prefill", 10, 15), ("decode", 25, 35), ("paused", 60, 40)]


def test_one_that_ended_before_a_token_came(asked):
    assert told(asked.segments(None, 100.050, None)) == [*BEFORE, ("wait", 8, 42)]


def test_one_whose_time_was_over_before_a_token_came(asked):
    segments = told(asked.segments(None, 100.050, Timing(queued_ms=30, prefill_ms=11)))
    assert segments == [*BEFORE, ("queue", 8, 30), ("prefill", 38, 11)]


def test_one_of_which_the_scheduler_told_nothing(asked):
    assert told(asked.segments((100.030, 100.060), 100.061, None)) == [
        *BEFORE,
        ("wait", 8, 22),
        ("decode", 30, 30),
    ]


def test_one_that_was_refused_before_it_was_asked(clock):
    assert Waterfall(100.0).segments(None, 100.5, None) == ()
