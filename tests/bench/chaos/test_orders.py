"""A worker that obeys: what `bench.chaos.orders` changes in it is still there to be changed."""

import time
from types import SimpleNamespace

import pytest
import torch

from bench.chaos.orders import Orders, meddle
from gpu_worker import main
from protos.packing import pack_i32, unpack_i32
from protos.step_pb2 import StepBatch, StepResult

STEP_S = 0.005


class Runner:
    def __init__(self) -> None:
        self.model = SimpleNamespace(logits=lambda hidden: hidden)

    def execute(self, batch, arrived_ns):
        time.sleep(STEP_S)
        result = StepResult(step=3, rows=pack_i32([0, 2]), tokens=pack_i32([7, 8]))
        return SimpleNamespace(result=lambda: (result, None), load="its load")


@pytest.fixture
def orders(tmp_path):
    return Orders(tmp_path / "orders")


@pytest.fixture(params=["start_runner", "start_smaller"])
def runner(orders, request):
    started = SimpleNamespace(runner=Runner(), host_cache=None)
    smaller = SimpleNamespace(runner=Runner(), host_cache=None)
    module = SimpleNamespace(start_runner=lambda *_: started, start_smaller=lambda *_: smaller)
    assert hasattr(main, request.param)
    meddle(module, orders)
    return getattr(module, request.param)(None, None).runner


def answer(runner):
    launched = runner.execute(StepBatch(), 0)
    assert launched.load == "its load"
    result, _ = launched.result()
    return result.step, unpack_i32(result.rows).tolist(), unpack_i32(result.tokens).tolist()


@pytest.mark.parametrize(
    ("order", "wanted"),
    [
        ("", (3, [0, 2], [7, 8])),
        ("wrong-step", (10, [0, 2], [7, 8])),
        ("wrong-token", (3, [0, 2], [1_000_007, 1_000_008])),
        ("wrong-rows", (3, [1, 2], [7, 8])),
    ],
)
def test_answers_are_as_ordered(runner, orders, order, wanted):
    orders.give(order)
    assert answer(runner) == wanted
    orders.give("")
    assert answer(runner) == (3, [0, 2], [7, 8])


def test_slow_is_ten_times_as_slow(runner, orders):
    orders.give("slow")
    began = time.perf_counter()
    answer(runner)
    assert time.perf_counter() - began >= 10 * STEP_S


def test_logits_are_numbers_unless_ordered_otherwise(runner, orders):
    assert runner.model.logits(torch.ones(2)).tolist() == [1, 1]
    orders.give("nan")
    assert torch.isnan(runner.model.logits(torch.ones(2))).all()
