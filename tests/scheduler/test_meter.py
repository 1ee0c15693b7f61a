from hypothesis import given
from hypothesis import strategies as st

from scheduler.meter import Meter


def test_a_steady_rate_is_that_rate():
    meter = Meter()
    for tenth in range(1000, 1050):
        meter.count(7, tenth / 10)
    assert meter.per_second(105.0) == 70


def test_what_is_long_ago_does_not_count():
    meter = Meter()
    meter.count(100, 10.0)
    assert meter.per_second(10.1) == 0  # its slot is still being filled
    assert meter.per_second(10.3) == 50
    assert meter.per_second(12.3) == 0
    assert meter.per_second(1e6) == 0


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(0, 9)), max_size=40), st.floats(0, 5))
def test_it_is_the_count_of_the_eight_whole_slots_before(events, later):
    meter, now, counted = Meter(), 50.0, []
    for pause, number in events:
        now += pause
        meter.count(number, now)
        counted.append((int(now / 0.25), number))
    now += later
    last = int(now / 0.25)
    assert meter.per_second(now) == sum(n for slot, n in counted if last - 8 <= slot < last) / 2
