import statistics

from hypothesis import given
from hypothesis import strategies as st

from gateway.console.latencies import Latencies, Percentiles, percentiles


@given(st.lists(st.floats(1e-5, 100), min_size=1, max_size=200))
def test_the_median_is_within_a_twentieth(seconds):
    latencies = Latencies()
    for each in seconds:
        latencies.observe("a", each, 100.0)
    told = percentiles(latencies.counts(100.0), None)
    lower, upper = statistics.median_low(seconds), statistics.median_high(seconds)
    assert told.count == len(seconds)
    assert lower * 0.95 <= told.p50 / 1e3 <= upper * 1.06
    assert told.p99 / 1e3 <= max(seconds) * 1.06


def test_nothing_measured_is_nothing_told():
    assert percentiles(Latencies().counts(5.0), None) == Percentiles(0, None, None)


def test_a_minute_is_remembered_and_no_more():
    latencies = Latencies()
    for second in range(100, 200):
        latencies.observe("a", 0.01, second)
    assert 55 <= percentiles(latencies.counts(200), "a").count <= 60
    assert percentiles(latencies.counts(270), "a").count == 0


def test_a_tenant_has_its_own():
    latencies = Latencies()
    latencies.observe("a", 0.001, 1.0)
    latencies.observe("b", 1.0, 1.0)
    counts = latencies.counts(1.0)
    assert percentiles(counts, "a").p99 < 2 < 900 < percentiles(counts, "b").p50
    assert percentiles(counts, None).count == 2
    assert percentiles(counts, "c").count == 0
