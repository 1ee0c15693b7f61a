import pytest

from scheduler.patience import DOUBT, FLOOR, FORGIVEN, LOOK_EVERY, MULTIPLE, Patience, Stopwatch


def test_the_limit_alone_holds_before_anything_is_known():
    assert Patience(300.0).deadline(1) == 300.0


def test_short_steps_get_the_floor():
    patience = Patience(300.0)
    patience.observe(8, 0.005)
    assert patience.deadline(8) == FLOOR
    assert Patience(0.5).deadline(8) == 0.5


def test_long_steps_get_a_multiple_of_the_longest_of_late():
    patience = Patience(300.0)
    patience.observe(512, 0.5)
    patience.observe(600, 0.1)
    assert patience.deadline(512) == pytest.approx(MULTIPLE * 0.5, rel=0.1)
    for _ in range(500):
        patience.observe(1000, 0.2)
    assert patience.deadline(512) == pytest.approx(MULTIPLE * 0.2, rel=0.01)


def test_sizes_never_seen():
    patience = Patience(300.0)
    patience.observe(16, 0.1)
    assert patience.deadline(1) == MULTIPLE * 0.1  # no less than a larger one
    assert patience.deadline(64) == MULTIPLE * 0.4  # in proportion
    assert patience.deadline(8192) == 300.0
    assert patience.deadline(0) == MULTIPLE * 0.1


def test_an_alarm_makes_patient_for_a_while():
    patience = Patience(300.0)
    patience.observe(1, 0.001)
    patience.alarmed()
    assert patience.deadline(1) == DOUBT * FLOOR
    patience.alarmed()
    assert patience.deadline(1) == DOUBT**2 * FLOOR
    for deadline in (DOUBT * FLOOR, FLOOR, FLOOR):
        for _ in range(FORGIVEN):
            patience.observe(1, 0.001)
        assert patience.deadline(1) == deadline


def test_time_counts_from_the_first_look_at_a_thing_on():
    watch = Stopwatch()
    first, second = object(), object()
    assert watch.look(None, 10.0) == 0
    assert watch.look(first, 10.1) == 0
    assert watch.look(first, 10.2) == pytest.approx(0.1)
    assert watch.look(first, 10.3) == pytest.approx(0.2)
    assert watch.look(second, 10.4) == 0
    assert watch.look(None, 10.5) == 0
    assert watch.look(None, 10.6) == 0


def test_time_in_which_nobody_looked_hardly_counts():
    """We were stopped ourselves, and the answer may have come meanwhile."""
    watch, thing = Stopwatch(), object()
    watch.look(thing, 10.0)
    assert watch.look(thing, 500.0) <= 2 * LOOK_EVERY
