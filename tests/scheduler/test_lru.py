from hypothesis import given
from hypothesis import strategies as st

from scheduler.lru import LruList

operations = st.lists(
    st.tuples(st.sampled_from(["append", "prepend", "remove", "pop"]), st.integers(0, 5)), max_size=60
)


@given(operations)
def test_like_a_list(moves):
    lru, model = LruList(6), []
    for move, item in moves:
        if move in ("append", "prepend") and item not in model:
            getattr(lru, move)(item)
            model.insert(len(model) if move == "append" else 0, item)
        elif move == "remove" and item in model:
            lru.remove(item)
            model.remove(item)
        elif move == "pop" and model:
            assert lru.oldest == model[0]
            assert lru.pop_oldest() == model.pop(0)
        assert len(lru) == len(model)
        assert [n in lru for n in range(6)] == [n in model for n in range(6)]
