"""When a worker counts as lost, and what that teaches."""

import numpy as np
import pytest

from protos.step_pb2 import StepBatch
from scheduler.batcher import Step
from scheduler.patience import DOUBT, FLOOR, LOOK_EVERY
from scheduler.watch import Watch
from tests.scheduler.hand_stepped import Bench

STEP = Step(StepBatch(), np.array([0]), 1, 0)


class Clock:
    def __init__(self):
        self.now = 100.0


@pytest.fixture
def tiers():
    return Bench().batcher.tiers


def waited(watch, tiers, clock):
    """Seconds until the step is overdue."""
    began = clock.now
    while not watch.overdue([STEP], tiers, clock.now):
        clock.now += LOOK_EVERY
    return clock.now - began


def used(clock):
    """A watch over a worker whose steps take a millisecond."""
    watch = Watch(300.0)
    watch.connected(1, clock.now)
    clock.now += 0.001
    watch.answered(STEP, clock.now)
    return watch


def test_an_alarm_makes_patient_if_the_worker_is_there(tiers):
    clock = Clock()
    watch = used(clock)
    assert waited(watch, tiers, clock) == pytest.approx(FLOOR, abs=2 * LOOK_EVERY)
    watch.heard(clock.now + 0.1)
    watch.connected(1, clock.now + 2.0)  # by then its step was done
    clock.now += 2.0
    assert waited(watch, tiers, clock) == pytest.approx(DOUBT * FLOOR, abs=2 * LOOK_EVERY)


def test_a_worker_that_stood_still_is_noticed_as_soon_the_next_time(tiers):
    clock = Clock()
    watch = used(clock)
    for _ in range(3):
        assert waited(watch, tiers, clock) == pytest.approx(FLOOR, abs=2 * LOOK_EVERY)
        clock.now += 3.0
        watch.heard(clock.now)
        watch.connected(1, clock.now)


def test_another_process_begins_anew(tiers):
    clock = Clock()
    watch = used(clock)
    waited(watch, tiers, clock)
    watch.heard(clock.now)
    watch.connected(2, clock.now)
    clock.now += 20.0
    assert watch.overdue([STEP], tiers, clock.now) is None
