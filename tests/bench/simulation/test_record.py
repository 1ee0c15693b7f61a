"""What gateway and scheduler added, from what a worker noted."""

import numpy as np
import pytest

from bench.simulation.record import Added, Record, added


def rows(*numbers):
    return np.array(numbers, np.int32)


@pytest.fixture
def path(tmp_path):
    record = Record()
    # Arrived, began, ended: two in flight, then a pause of 5 s before the last.
    record.step(1.0, 1.0, 11.0, [(0, "a")], rows(0))
    record.step(1.5, 11.0, 21.0, [], rows(0))
    record.step(12.0, 21.0, 31.0, [(1, "b")], rows(0, 1))
    record.step(36.0, 36.0, 46.0, [], rows(1))
    record.save(tmp_path / "worker-0.npz")
    return tmp_path / "worker-0.npz"


def test_a_request_to_an_idle_worker_is_charged_all_of_its_way(path):
    parts = added(path, {"a": (0.25, 11.5, 33.0)})
    assert (parts.before, parts.between, parts.after_first, parts.after_last) == (0.75, 0.0, 0.5, 2.0)


def test_a_busy_workers_steps_are_its_own_time_and_its_pauses_are_not(path):
    # Sent while two steps were there: the next could leave at 11, when the first of them ended.
    parts = added(path, {"b": (2.0, 31.25, 47.0)})
    assert (parts.before, parts.between, parts.after_first, parts.after_last) == (1.0, 5.0, 0.25, 1.0)
    assert (parts.to_first, parts.in_all) == (1.25, 7.0)


def test_a_step_that_was_missed_is_charged(path):
    # The step that left when nothing was there yet did not have it: the next one came 11 s after it was sent.
    assert added(path, {"b": (0.5, 32.0, 47.0)}).before == 11.5


def test_requests_that_nobody_asks_for_are_left_out(path):
    parts = Added.join([added(path, {}), added(path, {"a": (0.25, 11.5, 33.0)})])
    assert len(parts.in_all) == 1
