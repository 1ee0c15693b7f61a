import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from scheduler.peak import AnswerLengths, peak
from scheduler.preemption import Cause
from tests.scheduler.hand_stepped import Bench
from tests.scheduler.simulated_worker import answer


def simulate(own, remaining):
    """Step by step, up to the end of the last one."""
    most = 0
    for step in range(remaining[-1] + 1):
        most = max(most, sum(o + step for o, r in zip(own, remaining, strict=True) if r >= step))
    return most


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 40)), min_size=1, max_size=12))
def test_the_formula_is_what_happens(rows):
    own, remaining = map(np.array, zip(*rows, strict=True))
    assert peak(own, remaining) == simulate(own.tolist(), remaining.tolist())


def test_answers_are_as_long_as_they_were():
    lengths = AnswerLengths()
    for _ in range(2000):
        lengths.observe(100)
    left = lengths.remaining(np.array([0, 40, 0, 3000]), np.array([500, 500, 20, 9000]))
    assert 90 <= left[0] <= 120
    assert 50 <= left[1] <= 80
    assert left[2] == 20  # max_tokens bounds it
    assert left[3] == 3000  # longer than any: as long again


def test_old_answers_fade():
    lengths = AnswerLengths()
    for length in [1000] * 3000 + [10] * 6000:
        lengths.observe(length)
    assert lengths.remaining(np.array([0]), np.array([5000]))[0] < 20


def test_known_lengths_need_no_preemption():
    bench = Bench(num_blocks=40, block_size=4, max_rows=16, budget=64)
    for _ in range(4000):
        bench.lengths.observe(30)
    for n in range(40):
        bench.add([n], 30)
    bench.run()
    assert bench.preemptions == 0


def test_too_short_an_estimate_costs_preemptions_and_nothing_else():
    bench = Bench(num_blocks=40, block_size=4, max_rows=16, budget=64)
    for n in range(40):
        bench.add([n], 30)
    bench.run()
    assert bench.causes[Cause.MEMORY] > 0
    assert bench.answers()[0] == {n: answer([n], 30) for n in range(40)}


def test_a_shared_prefix_counts_once():
    prefix = [n % 50 for n in range(64)]
    together = []
    for shared in (True, False):
        bench = Bench(num_blocks=40, block_size=4, max_rows=16, budget=256, caching=shared)
        bench.add(prefix, 30)
        for n in range(10):
            bench.add([*prefix, n], 4)
        bench.send()
        together.append(len(bench.batcher.running))
    assert together[0] > 3 * together[1]


def test_what_could_be_one_token_only_says_nothing_of_answers():
    bench = Bench()
    seen = bench.lengths._scale
    bench.add([1, 2], 1)
    bench.run()
    assert bench.lengths._scale == seen
    bench.add([1, 2], 2)
    bench.run()
    assert bench.lengths._scale > seen
