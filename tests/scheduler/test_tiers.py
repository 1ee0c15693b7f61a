"""Blocks that move between the device and the host, against a worker that checks every slot it reads."""

from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scheduler.move_costs import ROUND_TRIP_US
from tests.scheduler.hand_stepped import Bench
from tests.scheduler.simulated_worker import answer

PROMPTS = [[n, n + 1, n + 2, n + 3] * 8 for n in range(6)]  # 8 blocks each, and nothing in common


def make_bench(**shape):
    return Bench(**{"num_blocks": 24, "block_size": 4, "budget": 40, "num_host_blocks": 200, **shape})


def run_in_turn(bench, prompts, max_tokens=1):
    for prompt in prompts:
        bench.add(prompt, max_tokens)
        bench.run()


def test_what_the_device_evicted_comes_back_from_the_host():
    bench = make_bench()
    run_in_turn(bench, PROMPTS)
    computed = bench.simulated.computed_tokens
    run_in_turn(bench, PROMPTS)
    # Of each prompt the last block is computed anew: there must be something to sample from.
    assert bench.simulated.computed_tokens == computed + len(PROMPTS) * 4
    assert bench.hits == {n: 0 if n < 6 else 28 for n in range(12)}
    hits, tiers = bench.found, bench.batcher.tiers
    assert hits.host + hits.device == len(PROMPTS) * 28
    assert hits.host == 4 * tiers.loaded_blocks > 0
    assert tiers.saved_blocks >= tiers.loaded_blocks
    assert bench.answers()[0] == {n: answer(PROMPTS[n % 6], 1) for n in range(12)}
    bench.check_idle()


def test_without_a_host_tier_it_is_computed_again():
    bench = make_bench(num_host_blocks=0)
    run_in_turn(bench, PROMPTS * 2)
    assert bench.found.host == 0
    assert bench.simulated.computed_tokens == 12 * 32


def evicted(**shape):
    """A bench on whose device the first prompt is no longer."""
    bench = make_bench(**shape)
    run_in_turn(bench, PROMPTS)
    return bench


def send_until_loads(bench):
    """Stops where a load has been sent, and nothing heard of it."""
    for _ in range(20):
        bench.send()
        if bench.simulated.loads:
            return
        bench.move(loads=False)
        if bench.in_flight:
            bench.answer()
    raise AssertionError("nothing is loaded")


def test_one_load_serves_all_who_wait_for_it_and_the_others_go_on():
    bench = evicted(budget=100)
    computed = bench.simulated.computed_tokens
    loaded = bench.batcher.tiers.loaded_blocks
    waiting = [bench.add([*PROMPTS[0], n], 1) for n in range(3)]
    other = bench.add([9] * 6, 1)
    while other.id in bench.session.requests:  # no news of loads until then
        bench.send()
        bench.move(loads=False)
        bench.answer()
    assert all(request.row is None for request in waiting)
    assert bench.batcher.entrance.aside == waiting
    bench.run()
    assert bench.batcher.tiers.loaded_blocks - loaded <= 8
    assert bench.simulated.computed_tokens == computed + 3 + 6
    bench.check_idle()


@pytest.mark.parametrize("who", [0, 1, 2])
def test_cancelled_while_its_blocks_are_on_their_way(who):
    bench = evicted()
    waiting = [bench.add([*PROMPTS[0], n], 4) for n in range(3)]
    send_until_loads(bench)
    assert bench.batcher.entrance.aside == waiting
    bench.cancel(waiting[who])
    bench.run()
    out, _ = bench.answers()
    for n, request in enumerate(waiting):
        assert out.get(request.id) == (None if n == who else answer([*PROMPTS[0], n], 4))
    bench.check_idle()


def test_a_worker_lost_while_blocks_are_on_their_way():
    bench = evicted()
    request = bench.add(PROMPTS[0], 4)
    send_until_loads(bench)
    assert bench.batcher.entrance.aside == [request]
    bench.lose_worker()
    bench.run()
    assert bench.answers()[0][request.id] == answer(PROMPTS[0], 4)
    assert bench.found.host == 0
    bench.check_idle()


def test_a_preempted_request_is_swapped_out_and_in():
    bench = make_bench(num_blocks=16, max_rows=3, budget=64)
    prompts = [[n] * 12 for n in range(3)]
    for prompt in prompts:
        bench.add(prompt, 40)
    bench.run()
    assert bench.preemptions > 0
    # Nothing is computed again but blocks that were not full, and one each that a decode needed at once.
    total = sum(len(prompt) + 39 for prompt in prompts)
    assert bench.found.host > 0
    assert bench.simulated.computed_tokens <= total + bench.preemptions * 2 * 4
    assert bench.answers()[0] == {n: answer(prompt, 40) for n, prompt in enumerate(prompts)}
    bench.check_idle()


def test_what_is_cheaper_to_compute_is_not_loaded():
    bench = evicted()
    tiers = bench.batcher.tiers
    tiers.costs.observe_step(40, 40)  # a microsecond per token
    tiers.costs.observe_loads(1, 1)
    run_in_turn(bench, PROMPTS)
    assert tiers.loaded_blocks == 0
    tiers.costs.observe_step(40, 40 * 100 * ROUND_TRIP_US)
    run_in_turn(bench, PROMPTS)
    assert tiers.loaded_blocks > 0


def test_a_steady_decode_step_moves_nothing():
    bench = make_bench(block_size=64)
    bench.add([7, 7, 7], 20)
    bench.send()
    bench.send()
    batch = bench.in_flight[1].batch
    batch.ClearField("step")
    assert batch.SerializeToString() == b""


def test_a_host_that_is_too_small_for_a_prompt_keeps_what_it_can():
    bench = make_bench(num_host_blocks=3, num_blocks=12)
    run_in_turn(bench, PROMPTS * 2)
    assert bench.batcher.tiers.saved_blocks > 0
    assert bench.answers()[0] == {n: answer(PROMPTS[n % 6], 1) for n in range(12)}
    bench.check_idle()


tokens = st.lists(st.integers(0, 1), min_size=1, max_size=40)


@settings(max_examples=60)
@given(st.lists(tokens, min_size=1, max_size=20), st.sampled_from([1, 2, 4]), st.integers(40, 60))
def test_with_room_on_the_host_no_prefix_is_computed_twice(prompts, block_size, num_blocks):
    bench = Bench(num_blocks=num_blocks // block_size + 1, block_size=block_size, num_host_blocks=2000)
    seen = set()
    for prompt in prompts:
        blocks = [tuple(prompt[: n + block_size]) for n in range(0, len(prompt) - block_size + 1, block_size)]
        usable = (len(prompt) - 1) // block_size
        known = next((n for n, block in enumerate(blocks[:usable]) if block not in seen), usable)
        request = bench.add(prompt, 1)
        bench.run()
        assert bench.hits[request.id] == known * block_size
        seen.update(blocks)
    bench.check_idle()


EVENTS = {"add": 3, "send": 6, "answer": 5, "save": 2, "load": 2, "cancel": 1, "lose": 0.05}


@settings(max_examples=300)
@given(
    st.integers(0, 1 << 32),
    st.sampled_from([1, 2, 3]),  # steps in flight
    st.sampled_from([1, 2]),  # block size
    st.integers(10, 16),  # blocks
    st.sampled_from([2, 6, 12, 40]),  # host blocks
)
@example(24678, 1, 1, 12, 40)  # room made on the host took what was to be loaded
def test_any_order_of_events_with_few_blocks_and_many_hits(seed, depth, size, num_blocks, num_host_blocks):
    random = Random(seed)  # Hypothesis' own choices are rarely as wild
    bench = Bench(
        depth, num_blocks=num_blocks, block_size=size, num_host_blocks=num_host_blocks, budget=24, max_rows=4
    )
    expected = {}
    for _ in range(200):
        (event,) = random.choices(list(EVENTS), list(EVENTS.values()))
        live = [id for id in expected if id in bench.session.requests]
        if event == "add" and len(live) < 8:
            room = num_blocks * size
            length = random.randint(1, room - 1)
            own = min(length, random.choice([0, 1, 2, 8]))
            prompt = [random.randrange(4)] * (length - own) + [random.randrange(2) for _ in range(own)]
            max_tokens = random.randint(1, min(8, room - length))
            expected[bench.add(prompt, max_tokens).id] = answer(prompt, max_tokens)
        elif event == "send":
            bench.send()
        elif event == "answer" and bench.in_flight:
            bench.answer()
        elif event in ("save", "load"):
            bench.move(loads=event == "load")
        elif event == "lose":
            bench.lose_worker()
        elif event == "cancel" and live:
            id = random.choice(live)
            bench.cancel(bench.session.requests[id])
            del expected[id]
    bench.run()
    out, ends = bench.answers()
    assert {id: out[id] for id in expected} == expected
    assert ends.keys() >= expected.keys()
    bench.check_idle()
