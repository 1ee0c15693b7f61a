"""Virtual token counters, alone and in the batcher."""

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.fairness import LOOKAHEAD, Tenants
from scheduler.preemption import Cause
from tests.scheduler.hand_stepped import Bench
from tests.scheduler.simulated_worker import answer


def test_weights_divide_what_is_charged():
    tenants = Tenants()
    one, four = tenants.arriving("one", 1.0), tenants.arriving("four", 4.0)
    one.charge(100)
    four.charge(100)
    assert (one.counter, four.counter) == (100, 25)


def test_a_row_counts_in_advance_and_not_twice():
    tenant = Tenants().arriving("a", 1.0)
    tenant.took_row(60)
    tenant.charge(10)
    assert (tenant.counter, tenant.served) == (70, 10)
    tenant.used_advance(20)
    assert (tenant.counter, tenant.served) == (70, 30)
    tenant.left_row(40)
    assert tenant.served == 30
    tenant.charge(40)
    assert tenant.counter == tenant.served == 70


def test_who_comes_back_has_saved_nothing():
    tenants = Tenants()
    busy = tenants.arriving("busy", 1.0)
    tenants.waits(busy)
    busy.charge(1000)
    idle = tenants.arriving("idle", 1.0)
    assert idle.counter == 1000
    tenants.waits(idle)
    busy.charge(500)
    assert tenants.arriving("idle", 1.0).counter == 1000  # it waits: it is not lifted again


def test_who_was_served_most_does_not_get_away_by_leaving():
    tenants = Tenants()
    greedy, modest = tenants.arriving("greedy", 1.0), tenants.arriving("modest", 1.0)
    for tenant in (greedy, modest):
        tenants.waits(tenant)
    greedy.charge(5000)
    modest.charge(100)
    tenants.waited(greedy)
    assert tenants.arriving("greedy", 1.0).counter == 5000


def test_an_empty_queue_levels_everybody_with_the_last_one_served():
    tenants = Tenants()
    alone = tenants.arriving("alone", 1.0)
    alone.charge(900)
    tenants.waits(alone)
    tenants.waited(alone)
    assert tenants.arriving("other", 1.0).counter == 900


def test_the_house_pays_nothing_and_holds_nobody_back():
    tenants = Tenants()
    busy = tenants.arriving("busy", 1.0)
    tenants.waits(busy)
    busy.charge(1000)
    tenants.waits(tenants.house)
    tenants.house.charge(1 << 20)
    assert tenants.house.counter < 0
    assert tenants.arriving("new", 1.0).counter == 1000
    tenants.waited(tenants.house)
    tenants.waited(busy)
    assert tenants.arriving("newer", 1.0).counter == 1000


def test_the_house_goes_first_but_takes_nobodys_row():
    bench = Bench(max_rows=4, budget=16, num_blocks=2000, max_model_len=2000)
    for n in range(6):
        bench.add([n], 1500 if n < 4 else 5, tenant="hog")
    for _ in range(100):  # the debt would be enough for anybody else
        bench.send()
        bench.answer()
    ours = bench.add([9], 2, tenant=None)
    bench.run()
    assert bench.preemptions == 0
    ends = list(bench.answers()[1])
    assert ends.index(ours.id) < ends.index(4)


def test_tenants_without_anything_to_say_are_forgotten():
    tenants = Tenants()
    for n in range(10_000):
        tenant = tenants.arriving(str(n), 1.0)
        tenants.waits(tenant)
        tenant.charge(10)
        tenants.waited(tenant)
    assert len(tenants) < 200


def test_the_tenant_served_least_gets_the_next_row_and_the_budget():
    bench = Bench(max_rows=2, budget=16, num_blocks=200)
    greedy = [bench.add([n] * 12, 8, tenant="greedy") for n in range(6)]
    for _ in range(4):
        bench.send()
        bench.answer()
    modest = bench.add([9] * 4, 2, tenant="modest")
    bench.run()
    ends = list(bench.answers()[1])
    assert ends.index(modest.id) < ends.index(greedy[3].id)


def test_a_newcomer_is_not_kept_waiting_by_a_long_prompt():
    bench = Bench(budget=16, num_blocks=200)
    bench.add(range(200), 1, tenant="long")
    for _ in range(4):
        bench.send()
        bench.answer()
    short = bench.add([1, 2, 3], 1, tenant="short")
    bench.send()
    assert short.row is not None  # in the very next step
    bench.run()


def test_what_is_computed_again_is_not_charged_again():
    bench = Bench(num_blocks=10, block_size=4, max_rows=4, budget=32, caching=False)
    requests = [bench.add(range(10 * n, 10 * n + 8), 20, tenant=str(n)) for n in range(3)]
    bench.run()
    assert bench.preemptions > 0
    assert bench.simulated.computed_tokens > 3 * 27
    # The last token sampled is never computed.
    assert [request.tenant.served for request in requests] == [27] * 3


def test_cached_tokens_cost_nothing():
    bench = Bench(budget=64, block_size=4)
    bench.add(range(16), 1, tenant="a")
    bench.run()
    second = bench.add(range(16), 1, tenant="b")
    before = second.tenant.served
    bench.run()
    assert second.tenant.served - before == 4


def test_rows_change_hands_when_one_tenant_has_all_of_them():
    bench = Bench(max_rows=4, budget=16, num_blocks=400, max_model_len=2000)
    hogs = [bench.add([n], 1500, tenant="hog") for n in range(6)]
    for _ in range(20):
        bench.send()
        bench.answer()
    late = [bench.add([50 - n], 30, tenant="late") for n in range(4)]
    bench.run()
    assert bench.causes[Cause.FAIRNESS] > 0
    out, ends = bench.answers()
    assert list(ends).index(late[-1].id) < list(ends).index(hogs[0].id)
    assert all(out[hog.id] == answer([n], 1500) for n, hog in enumerate(hogs))


work = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(1, 40), st.integers(1, 30), st.integers(-1, 1)),
    min_size=1,
    max_size=25,
)


@settings(max_examples=80)
@given(work, st.integers(1, 3), st.integers(1, 4), st.randoms(use_true_random=False))
def test_everybody_is_served_whatever_others_ask(asked, depth, max_rows, random):
    """Any mix of tenants and priorities: each request ends, with its own tokens."""
    bench = Bench(depth=depth, max_rows=max_rows, budget=8, num_blocks=24, block_size=4)
    expected = {}
    for tenant, prompt, max_tokens, priority in asked:
        tokens = [random.randrange(3) for _ in range(prompt)]
        request = bench.add(tokens, max_tokens, tenant=tenant, priority=priority)
        expected[request.id] = answer(tokens, max_tokens)
        for _ in range(random.randrange(4)):
            if not bench.send() and bench.in_flight:
                bench.answer()
    bench.run()
    assert bench.answers()[0] == expected
    bench.check_idle()
    assert {tenant.rows for tenant in bench.tenants._known.values()} == {0}
    assert {tenant.waiting for tenant in bench.tenants._known.values()} == {0}


@settings(max_examples=30)
@given(st.lists(st.integers(1, 30), min_size=2, max_size=4), st.sampled_from([1.0, 2.0, 4.0]))
def test_backlogged_tenants_stay_within_a_bound_of_each_other(lengths, weight):
    """VTC's bound: what was served differs by no more than what rows and a step can hold."""
    bench = Bench(max_rows=4, budget=32, num_blocks=200)
    names = [f"t{n}" for n in range(len(lengths))]
    tenants = []
    for n, length in enumerate(lengths):
        for i in range(400 // length):
            request = bench.add([n, i % 50] * length, length, tenant=names[n], weight=weight if n else 1.0)
        tenants.append(request.tenant)
    bound = 2 * max(3 * max(lengths), 32) + 4 * LOOKAHEAD
    while all(tenant.waiting for tenant in tenants):
        while bench.send():
            pass
        bench.answer()
        served = [tenant.served for tenant in tenants]
        assert max(served) - min(served) <= bound
    bench.run()
