"""Made-up steps are allowed whatever the limits, and leave nothing behind."""

import pytest

from gpu_worker.dummy_steps import largest_step, warm_up, warm_up_briefly
from gpu_worker.rows import RowLimits
from protos.packing import unpack_i32
from tests.gpu_worker.helpers import make_runner, run_step

LIMITS = [
    {"max_rows": 4, "max_model_len": 128, "max_batched_tokens": 64},
    {"max_rows": 3, "max_model_len": 10, "max_batched_tokens": 100},
    {"max_rows": 1, "max_model_len": 1, "max_batched_tokens": 1},
    {"max_rows": 5, "max_model_len": 2, "max_batched_tokens": 5},
]


@pytest.mark.parametrize("limits", LIMITS)
def test_warm_up_frees_what_it_used(tiny_model, limits):
    runner = make_runner(tiny_model, **limits)
    stops = []
    warm_up(runner, lambda: stops.append(runner.rows.last_step))
    assert len(stops) >= 6
    assert runner.rows.num_active == runner.rows.last_step == 0
    warm_up_briefly(runner)
    assert runner.rows.num_active == runner.rows.last_step == 0


def test_warm_up_can_be_stopped(runner):
    def stop():
        raise InterruptedError

    with pytest.raises(InterruptedError):
        warm_up(runner, stop)


@pytest.mark.parametrize("limits", LIMITS)
def test_the_largest_step_has_all_tokens_and_samples_all_rows(tiny_model, limits):
    runner = make_runner(tiny_model, num_blocks=1, **limits)
    result = run_step(runner, largest_step(runner.rows.limits))
    most = min(limits["max_batched_tokens"], limits["max_rows"] * limits["max_model_len"])
    assert result.num_tokens == most
    assert len(unpack_i32(result.rows)) == limits["max_rows"]


def test_the_largest_step_fills_rows_up():
    lens = unpack_i32(largest_step(RowLimits(4, 50, 120, 10, 16)).chunk_lens)
    assert lens.tolist() == [50, 50, 19, 1]
