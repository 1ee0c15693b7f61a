from hypothesis import given
from hypothesis import strategies as st

from prefix_cache.hashing import Digest
from prefix_cache.index import PrefixIndex

digests = st.integers(0, 9).map(lambda n: Digest(bytes([n])))
operations = st.lists(
    st.tuples(st.sampled_from(["insert", "remove"]), digests, st.integers(0, 9)), max_size=60
)


@given(operations, st.lists(digests, max_size=6))
def test_like_a_dictionary_that_is_one_to_one(moves, wanted):
    index, model = PrefixIndex(), {}
    for move, digest, block in moves:
        if move == "insert":
            fits = digest not in model and block not in model.values()
            assert index.insert(digest, block) is fits
            if fits:
                model[digest] = block
        elif block in model.values():
            index.remove(block)
            model = {d: b for d, b in model.items() if b != block}
        assert len(index) == len(model)
        assert all(index.has(b) == (b in model.values()) for b in range(10))
    expected = []
    for digest in wanted:
        if digest not in model:
            break
        expected.append(model[digest])
    assert index.match(wanted) == expected


@given(st.sets(digests), st.lists(digests, unique=True, max_size=10), st.sets(digests), st.integers(0, 11))
def test_the_bound_is_never_too_low_and_exact_without_holes(known, chain, promised, guess):
    index = PrefixIndex()
    for block, digest in enumerate(sorted(known)):
        assert index.insert(digest, block)
    found = next((n for n, d in enumerate(chain) if d not in known | promised), len(chain))
    bound = index.bound(chain, len(chain), [promised], guess)
    assert found <= bound <= len(chain)
    if not any(digest in known | promised for digest in chain[found:]):
        assert bound == found
    assert len(index.match(chain)) <= found
