"""Priorities: who is paused, when, and that nobody notices in his tokens."""

from scheduler.preemption import Cause
from scheduler.urgency import CALM_TOKENS
from tests.scheduler.hand_stepped import Bench
from tests.scheduler.simulated_worker import answer


def step(bench):
    while bench.send():
        pass
    bench.answer()


def test_a_high_priority_takes_the_row_of_the_lowest_then_newest():
    bench = Bench(max_rows=3, budget=32, num_blocks=200)
    lows = [bench.add([n], 60, priority=priority) for n, priority in enumerate((0, -1, -1))]
    for _ in range(5):
        step(bench)
    high = bench.add([7, 8], 5, priority=1)
    bench.run()
    assert bench.causes == {Cause.PRIORITY: 1}
    assert [low.preemptions for low in lows] == [0, 0, 1]
    out, ends = bench.answers()
    assert next(iter(ends)) == high.id
    assert out == {
        **{low.id: answer([n], 60) for n, low in enumerate(lows)},
        high.id: answer([7, 8], 5),
    }


def test_a_high_priority_has_its_row_as_soon_as_the_steps_in_flight_are_answered():
    bench = Bench(max_rows=2, budget=32, num_blocks=200, depth=2)
    for n in range(4):
        bench.add([n], 60)
    for _ in range(5):
        step(bench)
    while bench.send():
        pass
    high = bench.add([7, 8], 5, priority=1)
    sent = bench.batcher.sent
    while high.row is None:
        step(bench)
    assert bench.batcher.sent <= sent + 3


def test_blocks_are_taken_from_lower_priorities_only():
    bench = Bench(max_rows=8, budget=64, num_blocks=20, block_size=4)
    equal = bench.add(range(20), 12, priority=1)
    low = bench.add(range(30, 50), 30)
    step(bench)
    high = bench.add(range(4, 44), 4, priority=1)
    bench.run()
    assert low.preemptions > 0
    assert equal.preemptions == 0
    assert bench.answers()[0][high.id] == answer(range(4, 44), 4)


def test_nobody_is_paused_for_an_equal():
    bench = Bench(max_rows=2, budget=32, num_blocks=200)
    for n in range(6):
        bench.add([n], 30, priority=3)
    bench.run()
    assert bench.preemptions == 0


def test_prompts_of_lower_priority_are_short_while_a_high_one_comes():
    bench = Bench(max_rows=16, budget=4096, num_blocks=900, block_size=16, max_model_len=8000)
    bench.add([1, 2], 200, priority=1)
    step(bench)
    bench.add([n % 50 for n in range(6000)], 1)
    sizes = []
    for _ in range(5):
        bench.send()
        sizes.append(bench.in_flight[-1].num_tokens)
        bench.answer()
    assert max(sizes) <= CALM_TOKENS + 1
    assert bench.batcher.rows.vacant >= 2
