"""No holes: a block that the index knows is of use, for all before it is known too."""

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scheduler.hand_stepped import Bench
from tests.scheduler.simulated_worker import answer


def holes(bench, requests):
    """Digests that are known behind one that is not."""
    index, found = bench.batcher.pool.index, set()
    for request in requests:
        known = [digest in index for digest in request.digests]
        ends = known.index(False) if False in known else len(known)
        found.update(
            digest for digest, there in zip(request.digests[ends:], known[ends:], strict=True) if there
        )
    return found


def test_an_anonymous_block_takes_the_place_of_its_twin():
    bench = Bench(num_blocks=12, block_size=4, budget=32)
    prompt = list(range(8))  # its last block is computed by both, for there must be something to sample from
    first = bench.add(prompt, 1)
    bench.run()
    second = bench.add(prompt, 9)  # two blocks more, behind its own copy
    bench.run()
    bench.add([9] * 32, 1)  # pushes out all but four
    bench.run()
    assert len(second.digests) == 4
    assert not holes(bench, [first, second])
    assert len(bench.batcher.pool.index.match(second.digests)) == 4
    bench.check_idle()


EVENTS = {"add": 3, "send": 6, "answer": 5, "cancel": 1}


@settings(max_examples=300)
@given(
    st.integers(0, 1 << 32),
    st.sampled_from([1, 2, 3]),  # steps in flight
    st.sampled_from([1, 2, 4]),  # block size
    st.integers(8, 16),  # blocks
)
def test_whatever_happened_there_are_no_holes_when_nothing_runs(seed, depth, size, num_blocks):
    random = Random(seed)
    bench = Bench(depth, num_blocks=num_blocks, block_size=size, budget=16, max_rows=4)
    asked, expected = [], {}
    for _ in range(150):
        (event,) = random.choices(list(EVENTS), list(EVENTS.values()))
        live = [request for request in asked if request.id in bench.session.requests]
        if event == "add" and len(live) < 6:
            room = num_blocks * size
            prompt = [random.randrange(2)] * random.randint(1, room - 1)  # answers are functions of prompts
            max_tokens = random.randint(1, min(12, room - len(prompt)))
            asked.append(bench.add(prompt, max_tokens))
            expected[asked[-1].id] = answer(prompt, max_tokens)
        elif event == "send":
            bench.send()
        elif event == "answer" and bench.in_flight:
            bench.answer()
        elif event == "cancel" and live:
            request = random.choice(live)
            bench.cancel(request)
            del expected[request.id]
        if random.random() < 0.05:
            bench.run()
            assert not holes(bench, asked)
    bench.run()
    assert not holes(bench, asked)
    out, _ = bench.answers()
    assert {id: out[id] for id in expected} == expected
    bench.check_idle()
