"""The first in the queue, while there is no room for it."""

from random import Random

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.scheduler.hand_stepped import Bench


def count_walks(bench):
    """How often chains are walked from now on, in a list of one."""
    walks, find = [0], bench.batcher.entrance.find

    def counted(request):
        walks[0] += 1
        return find(request)

    bench.batcher.entrance.find = counted
    return walks


def test_a_chain_is_not_walked_again_until_there_could_be_room():
    bench = Bench(num_blocks=64, block_size=4, budget=256, max_model_len=256)
    bench.add([1] * 150, 60)
    big = bench.add([2] * 200, 2)
    walks = count_walks(bench)
    steps = 0
    while big.row is None:
        bench.send()
        bench.answer()
        steps += 1
    assert steps > 50
    assert walks[0] <= 8  # of them some for blocks that the first request has filled
    bench.run()
    bench.check_idle()


def test_what_would_be_with_more_blocks_is_not_remembered():
    bench = Bench(num_blocks=16, block_size=4, budget=64)
    bench.add([1] * 40, 20)
    bench.send()
    big = bench.add([2] * 36, 2, priority=1)
    entrance, running = bench.batcher.entrance, bench.batcher.running
    assert not entrance.has_room(big, running, 0, 0)
    assert entrance.has_room(big, running, 0, 10)
    assert entrance._blocked is None
    bench.send()
    assert entrance._blocked.request is big
    bench.run()
    bench.check_idle()


def really_fits(bench, request):
    entrance, pool = bench.batcher.entrance, bench.batcher.pool
    on_device = entrance.find(request).on_device
    fresh = -(-len(request.tokens) // bench.batcher.rows.block_size) - len(on_device)
    return fresh + pool.idle_among(on_device) + len(bench.batcher.running) <= pool.available


EVENTS = {"add": 3, "send": 6, "answer": 5, "save": 1, "load": 1, "cancel": 1}


@settings(max_examples=200)
@example(1, 2, 10, 0)  # a block comes back in the middle of a chain whose rest is known
@given(
    st.integers(0, 1 << 32),
    st.sampled_from([1, 2, 4]),
    st.integers(8, 16),
    st.sampled_from([0, 0, 12]),
)
def test_who_is_said_to_have_no_room_has_none(seed, size, num_blocks, num_host_blocks):
    random = Random(seed)
    bench = Bench(2, num_blocks=num_blocks, block_size=size, num_host_blocks=num_host_blocks, budget=16)
    entrance = bench.batcher.entrance
    for _ in range(150):
        (event,) = random.choices(list(EVENTS), list(EVENTS.values()))
        if event == "add" and len(bench.session.requests) < 6:
            length = random.randint(1, num_blocks * size - 1)
            max_tokens = random.randint(1, min(12, num_blocks * size - length))
            who = {"tenant": random.choice("ab"), "priority": random.choice([0, 0, 1])}
            bench.add([random.randrange(2)] * length, max_tokens, **who)
        elif event == "send":
            bench.send()
        elif event == "answer" and bench.in_flight:
            bench.answer()
        elif event in ("save", "load"):
            bench.move(loads=event == "load")
        elif event == "cancel" and bench.session.requests:
            bench.cancel(random.choice(list(bench.session.requests.values())))
        first, running = bench.waiting.peek(), len(bench.batcher.running)
        blocked = entrance._blocked
        if first and blocked and blocked.holds(first, running, bench.batcher.tiers):
            assert not really_fits(bench, first)
    bench.run()
    bench.check_idle()
