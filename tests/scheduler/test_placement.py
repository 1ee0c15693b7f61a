from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from scheduler.load import Load
from scheduler.placement import cheapest, cost

tokens = st.integers(0, 10**6)
loads = st.builds(
    Load,
    uncached=tokens,
    loaded=tokens,
    loading=tokens,
    queued=tokens,
    rows=st.integers(0, 4096),
    context=tokens,
    free=tokens,
    available=tokens,
)

IDLE = Load(uncached=0, loaded=0, loading=0, queued=0, rows=0, context=0, free=10**6, available=10**6)


def load(**facts):
    return Load(**{name: facts.get(name, getattr(IDLE, name)) for name in Load.__dataclass_fields__})


def choose(weights=None, **candidates):
    weights = weights or dict.fromkeys(candidates, 1.0)
    return cheapest(list(candidates.items()), candidates.__getitem__, weights.__getitem__)[0]


def test_a_cached_prefix_is_worth_its_tokens():
    assert choose(cold=load(uncached=500), warm=load(uncached=20, queued=400)) == "warm"
    assert choose(cold=load(uncached=500), busy=load(uncached=20, rows=30)) == "cold"


def test_a_prefix_that_is_being_computed_is_waited_for_until_too_many_wait():
    def first(waiting):
        return load(uncached=64, queued=10_000 + 64 * waiting, rows=1 + waiting)

    chosen = [choose(first=first(n), other=load(uncached=10_064)) for n in range(0, 200, 5)]
    assert chosen[:4] == ["first"] * 4
    assert chosen[-1] == "other"
    assert chosen == sorted(chosen)  # once it spreads, it spreads


def test_a_worker_gets_work_by_its_weight():
    given = {"slow": 0, "fast": 0}
    for _ in range(400):
        loads = {
            name: load(uncached=100, queued=100 * count, rows=count, context=100 * count)
            for name, count in given.items()
        }
        given[choose(weights={"slow": 1.0, "fast": 3.0}, **loads)] += 1
    assert 2.8 < given["fast"] / given["slow"] < 3.2


def test_free_blocks_are_used_before_cached_ones_and_cached_ones_before_waiting():
    assert choose(full=load(uncached=100, free=0), empty=load(uncached=100)) == "empty"
    assert choose(busy=load(uncached=100, available=0, free=0), full=load(uncached=100, free=0)) == "full"


def test_what_a_request_evicts_and_lacks():
    room = load(uncached=100, free=30, available=80)
    assert (room.evicted, room.short) == (50, 20)
    assert (load(uncached=10, free=30, available=80).evicted, room.uncached) == (0, 100)


@given(st.lists(st.tuples(loads, st.integers(0, 10**5)), min_size=1, max_size=8))
def test_the_chosen_has_the_least_exact_cost_though_bounds_are_too_good(pairs):
    exact = {n: low for n, (low, _) in enumerate(pairs)}
    asked = []
    bounds = [
        (n, replace(low, uncached=max(0, low.uncached - gain), loaded=0, loading=0))
        for n, (low, gain) in enumerate(pairs)
    ]
    chosen, found = cheapest(bounds, lambda n: (asked.append(n), exact[n])[1], lambda n: 1.0 + n)
    assert found == exact[chosen]
    assert cost(found, 1.0 + chosen) == min(cost(low, 1.0 + n) for n, low in exact.items())
    assert len(asked) == len(set(asked))


@given(loads, st.sampled_from(["uncached", "loading", "queued", "rows", "context"]), st.integers(1, 10**5))
def test_more_of_anything_costs_more(before, fact, more):
    after = load(
        **{name: getattr(before, name) for name in Load.__dataclass_fields__}
        | {fact: getattr(before, fact) + more}
    )
    assert cost(after) > cost(before)
