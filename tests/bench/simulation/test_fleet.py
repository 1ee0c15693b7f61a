"""The real scheduler on simulated workers: what is computed, when it is done, where it goes."""

import pytest

from bench.simulation import h200
from bench.simulation.fleet import play
from bench.simulation.routers import ApproximatePrefix, ExactPrefix, Random, RoundRobin
from bench.simulation.trace import BLOCK, Arrival
from bench.simulation.worker import HOP_SECONDS, SimulatedWorker
from scheduler.placement import LeastCost


def workers(count=1, blocks=1000, **shape):
    return [SimulatedWorker(f"worker-{n}", blocks, **shape) for n in range(count)]


def conversation(number, turns, every=1.0, at=0.0):
    """Each turn goes on where the one before ended."""
    contents = tuple(range(1000 * number, 1000 * number + turns))
    return [Arrival(at + every * n, BLOCK * (n + 1), 3, contents[: n + 1]) for n in range(turns)]


def in_order(*conversations):
    return sorted((turn for turns in conversations for turn in turns), key=lambda turn: turn.at)


def test_one_request_takes_what_its_steps_take():
    outcome = play([Arrival(0.0, 600, 3, (0, 1))], workers())
    prefill, decodes = h200.step_us(0, 0, [(600, 0)]), [h200.step_us(1, 600 + n) for n in range(2)]
    assert outcome.ttft[0] == pytest.approx(2 * HOP_SECONDS + prefill / 1e6, abs=1e-6)
    assert outcome.seconds == pytest.approx(outcome.ttft[0] + sum(decodes) / 1e6, abs=1e-6)
    assert outcome.count.tolist() == [3]
    assert sorted(gap for gaps in outcome.gaps for gap in gaps) == pytest.approx(
        [us / 1e6 for us in decodes], abs=1e-6
    )


def test_a_conversation_computes_each_token_once():
    fleet = workers()
    outcome = play(conversation(0, 5), fleet)
    assert outcome.cached.tolist() == [n * BLOCK for n in range(5)]
    assert fleet[0].computed_tokens == 5 * BLOCK
    assert outcome.good(ttft=1.0, itl=0.025).all()


def test_so_many_at_a_time():
    asked = [Arrival(0.0, 100, 4, (n,)) for n in range(6)]
    alone, together = play(asked, workers(), concurrency=1), play(asked, workers())
    assert (alone.arrived[1:] >= alone.last[:-1]).all()
    assert together.seconds < alone.seconds / 3


def test_a_prompt_that_fits_nowhere_is_refused_and_not_good():
    outcome = play([Arrival(0.0, 600, 3, (0, 1)), Arrival(0.0, 100, 3, (2,))], workers(blocks=20))
    assert outcome.count.tolist() == [0, 3]
    assert outcome.good(ttft=1.0, itl=1.0).tolist() == [False, True]


def test_what_left_the_gpu_comes_back_from_host_memory():
    asked = in_order(*(conversation(n, 4, every=10.0, at=n) for n in range(4)))  # 8,192 tokens in the end
    kept = play(asked, workers(blocks=1000))
    lost = play(asked, workers(blocks=200))
    loaded = play(asked, workers(blocks=200, num_host_blocks=800))
    assert kept.cached.sum() == 4 * (1 + 2 + 3) * BLOCK
    assert lost.cached.sum() < kept.cached.sum() / 2
    assert loaded.cached.sum() == kept.cached.sum()
    assert kept.ttft.max() <= loaded.ttft.max() < lost.ttft.max()


def test_a_prefix_in_host_memory_attracts_its_request():
    asked = in_order(*(conversation(n, 4, every=10.0, at=n) for n in range(8)))
    fleet = workers(2, blocks=200, num_host_blocks=800)
    assert play(asked, fleet).cached.sum() == 8 * (1 + 2 + 3) * BLOCK
    assert all(worker.computed_tokens for worker in fleet)


@pytest.mark.parametrize("router", [LeastCost, RoundRobin, Random, ApproximatePrefix, ExactPrefix])
def test_every_router_serves_everybody(router):
    asked = in_order(*(conversation(n, 4, at=n / 10) for n in range(5)))
    outcome = play(asked, workers(3), router())
    assert (outcome.count == 3).all()
    if router in (LeastCost, ApproximatePrefix, ExactPrefix):  # those that know prefixes keep to them
        assert outcome.cached.sum() == 5 * (1 + 2 + 3) * BLOCK
    else:
        assert outcome.cached.sum() < 5 * (1 + 2 + 3) * BLOCK


def test_round_robin_takes_turns():
    fleet = workers(3)
    play([Arrival(n / 10, 100, 1, (n,)) for n in range(9)], fleet, RoundRobin())
    assert [worker.computed_tokens for worker in fleet] == [300] * 3
