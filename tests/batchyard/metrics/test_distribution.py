from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from batchyard.metrics.distribution import Distribution

BOUNDS = (1, 2.5, 10)


class Reported(Collector):
    def __init__(self, distribution):
        self.distribution = distribution

    def collect(self):
        family = HistogramMetricFamily("h", "x", labels=["worker"])
        self.distribution.report(family, ["w"])
        yield family


@given(st.lists(st.sampled_from([0, 1, 1.5, 2.5, 3, 10, 11, 1e9])))
def test_it_tells_what_the_library_would(values):
    registry = CollectorRegistry()
    library = Histogram("h", "x", ["worker"], buckets=BOUNDS, registry=registry)
    library.labels("w")
    ours = Distribution(BOUNDS)
    for value in values:
        ours.observe(value)
        library.labels("w").observe(value)
    ignored = "_created"
    lines = [line for line in generate_latest(registry).splitlines() if ignored.encode() not in line]
    assert generate_latest(Reported(ours)).splitlines() == lines
    assert (ours.count, ours.sum) == (len(values), sum(values))
