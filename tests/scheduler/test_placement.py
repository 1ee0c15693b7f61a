from hypothesis import given
from hypothesis import strategies as st

from scheduler.placement import ROW_COST, Load, choose

loads = st.builds(Load, st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 4096))


def test_a_cached_prefix_is_worth_its_tokens():
    assert choose([("cold", Load(500, 0, 0)), ("warm", Load(20, 400, 0))]) == "warm"
    assert choose([("cold", Load(500, 0, 0)), ("busy", Load(20, 0, 1 + 480 // ROW_COST))]) == "cold"


@given(st.lists(loads, min_size=1))
def test_nobody_is_cheaper_than_the_chosen(candidates):
    chosen = choose([(load, load) for load in candidates])
    assert chosen.cost == min(load.cost for load in candidates)
