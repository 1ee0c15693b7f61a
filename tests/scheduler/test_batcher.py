"""The batcher against a worker that checks every cache slot it reads."""

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scheduler.hand_stepped import Bench
from tests.scheduler.simulated_worker import VOCAB, answer


def test_one_request_from_prompt_to_last_token():
    bench = Bench()
    bench.add(range(10), 5)
    bench.run()
    assert bench.answers()[0] == {0: answer(range(10), 5)}
    bench.check_idle()


def test_a_steady_decode_step_says_nothing():
    bench = Bench(block_size=64, num_blocks=8)
    bench.add([1, 2, 3], 20)
    bench.send()
    bench.send()
    batch = bench.in_flight[1].batch
    batch.ClearField("step")
    assert batch.SerializeToString() == b""


def test_prompts_share_one_budget_in_chunks():
    bench = Bench(budget=8, max_rows=4)
    bench.add(range(20), 2)
    bench.add(range(30, 40), 2)
    sizes = []
    while bench.send():
        sizes.append(bench.in_flight[-1].num_tokens)
        bench.answer()
    assert sizes[:4] == [8, 8, 4 + 4, 1 + 6]  # the second prompt fills what the first leaves


def test_a_long_prompt_joins_rows_that_decode_in_calm_chunks():
    bench = Bench(budget=64, max_rows=4, num_blocks=64, max_model_len=128, calm=8, depth=1)
    bench.add(range(3), 30)
    bench.send()  # alone: all at once
    bench.answer()
    bench.add(range(20), 2)
    sizes = []
    while bench.waiting.peek() or bench.batcher.backlog:
        bench.send()
        sizes.append(bench.in_flight[-1].num_tokens - 1)
        bench.answer()
    assert sizes == [8, 8, 4]
    bench.run()
    assert bench.answers()[0][1] == answer(range(20), 2)
    bench.check_idle()


def test_an_equal_prefix_is_computed_once():
    bench = Bench(budget=64, block_size=4)
    prompt = list(range(16))
    bench.add(prompt, 4)
    bench.add([*prompt, 1, 2], 4)  # in the same step already
    bench.run()
    bench.add(prompt, 4)  # one block must be computed, to sample from
    bench.run()
    assert bench.hits == {0: 0, 1: 16, 2: 12}
    assert bench.answers()[0][2] == answer(prompt, 4)
    bench.check_idle()


PREFIX = [n % 7 for n in range(2048)]


@pytest.mark.parametrize("budget", [8192, 512, 100])  # all in one step; the prefix over several steps
def test_a_burst_with_one_new_prefix_computes_it_once(budget):
    bench = Bench(budget=budget, block_size=16, num_blocks=400, max_rows=16, max_model_len=2200)
    suffixes = [[n] * (3 + n) for n in range(10)]
    for suffix in suffixes:
        bench.add(PREFIX + suffix, 2)
    bench.run()
    prompts = len(PREFIX) + sum(map(len, suffixes))
    # Two tokens are sampled, of which one is computed: the second ends the request.
    assert bench.simulated.computed_tokens == prompts + len(suffixes)
    assert bench.hits == {0: 0} | {n: len(PREFIX) for n in range(1, 10)}
    assert bench.answers()[0] == {n: answer(PREFIX + suffix, 2) for n, suffix in enumerate(suffixes)}
    bench.check_idle()


@pytest.mark.parametrize("loss", ["cancelled", "worker"])
def test_whoever_comes_next_goes_on_with_a_prefix_that_was_begun(loss):
    bench = Bench(budget=512, block_size=16, num_blocks=400, max_rows=16, max_model_len=2200)
    first = bench.add([*PREFIX, 1], 2)
    for n in range(3):
        bench.add([*PREFIX, 2, n], 2)
    bench.add([9] * 20, 2)  # has nothing to do with them
    bench.send()
    bench.send()
    if loss == "cancelled":
        bench.cancel(first)
        computed = 0
    else:
        bench.lose_worker()
        computed = 2 * 512  # and once more, for the cache is gone
    bench.run()
    suffixes = 3 * 2 + 20 + (loss == "worker")
    samples = 4 + (loss == "worker")
    assert bench.simulated.computed_tokens == computed + len(PREFIX) + suffixes + samples
    bench.check_idle()


def test_another_salt_shares_nothing():
    bench = Bench(budget=64)
    bench.add(range(16), 4, salt="a")
    bench.run()
    bench.add(range(16), 4, salt="b")
    bench.run()
    assert bench.hits == {0: 0, 1: 0}


def test_generated_blocks_are_shared_too():
    bench = Bench(budget=64, block_size=4)
    bench.add(range(8), 9)
    bench.run()
    conversation = [*range(8), *answer(range(8), 9), 7]
    bench.add(conversation, 3)
    bench.run()
    assert bench.hits[1] == 16


def test_the_newest_is_preempted_and_ends_with_the_same_tokens():
    prompts = [range(8), range(10, 18), range(20, 28)]
    bench = Bench(num_blocks=10, block_size=4, max_rows=4, budget=32)
    for prompt in prompts:
        bench.add(prompt, 20)
    bench.run()
    assert bench.preemptions > 0
    out, ends = bench.answers()
    assert out == {n: answer(prompt, 20) for n, prompt in enumerate(prompts)}
    assert ends[0].timing.preemptions == 0
    bench.check_idle()


def test_a_stop_learned_late_drops_the_surplus():
    stop = answer(range(6), 10)[4]
    expected = answer(range(6), 10, {stop})
    for depth in (1, 2, 3):
        bench = Bench(depth=depth)
        bench.add(range(6), 10, {stop})
        bench.run()
        out, ends = bench.answers()
        assert out[0] == expected
        assert ends[0].stop_token == stop
        bench.check_idle()


def test_a_row_is_not_reused_before_its_fence():
    bench = Bench(max_rows=1, depth=2)
    bench.add(range(4), 3)
    bench.add(range(4, 8), 3)
    bench.run()
    assert bench.answers()[0] == {0: answer(range(4), 3), 1: answer(range(4, 8), 3)}


@st.composite
def workloads(draw):
    shape = {
        "num_blocks": draw(st.integers(8, 24)),
        "block_size": draw(st.sampled_from([1, 2, 4])),
        "max_rows": draw(st.integers(1, 6)),
        "budget": draw(st.integers(6, 24)),
        "num_host_blocks": draw(st.sampled_from([0, 0, 1, 4, 24, 100])),
        "calm": draw(st.sampled_from([0, 1, 5])),
    }
    room = shape["num_blocks"] * shape["block_size"]
    requests = []
    for _ in range(draw(st.integers(1, 10))):
        length = draw(st.integers(1, room - 1))
        prompt = [draw(st.integers(0, 1))] * (length // 2) + list(range(length - length // 2))
        requests.append(
            (
                prompt,
                draw(st.integers(1, room - length)),
                draw(st.frozensets(st.integers(0, VOCAB - 1), max_size=3)),
            )
        )
    events = ["add", "send", "send", "answer", "answer", "save", "load", "cancel", "lose"]
    moves = draw(st.lists(st.sampled_from(events), max_size=80))
    return shape, requests, moves


@settings(max_examples=150)
@given(workloads(), st.integers(1, 3), st.booleans(), st.randoms(use_true_random=False))
def test_any_order_of_events_gives_every_request_its_own_tokens(workload, depth, caching, random):
    shape, requests, moves = workload
    bench = Bench(depth=depth, caching=caching, max_model_len=128, **shape)
    todo, live, cancelled = deque(requests), [], set()
    expected = {}
    for move in [*moves, *["add"] * len(requests)]:
        if move == "add" and todo:
            prompt, max_tokens, stops = todo.popleft()
            request = bench.add(prompt, max_tokens, stops)
            expected[request.id] = answer(prompt, max_tokens, stops)
            live.append(request)
        elif move == "send":
            bench.send()
        elif move == "answer" and bench.in_flight:
            bench.answer()
        elif move in ("save", "load"):
            bench.move(loads=move == "load")
        elif move == "lose":
            bench.lose_worker()
        elif move == "cancel" and live:
            request = live.pop(random.randrange(len(live)))
            if request.id in bench.session.requests:
                bench.cancel(request)
                cancelled.add(request.id)
    bench.run()
    out, ends = bench.answers()
    for id, tokens in expected.items():
        if id in cancelled:
            assert id not in ends
            assert out.get(id, []) == tokens[: len(out.get(id, []))]
        else:
            assert out[id] == tokens
            assert id in ends
    bench.check_idle()


def test_a_scored_prompt_may_come_from_the_cache_when_its_row_was_lost():
    bench = Bench(num_blocks=6, block_size=4, max_rows=2, budget=32)
    bench.add(range(8), 12)
    second = bench.add(range(10, 18), 12)
    second.sampling.prompt_logprobs = 1
    assert second.reads_prompt_logits
    bench.run()
    assert bench.preemptions > 0
    assert not second.reads_prompt_logits
    assert bench.answers()[0][1] == answer(range(10, 18), 12)
