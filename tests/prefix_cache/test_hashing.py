import hashlib
import json
import re
import struct
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from prefix_cache.hashing import chain, root

tokens = st.lists(st.integers(0, 2**31 - 1), max_size=80)


def digests(ids, block_size, salt=""):
    return list(chain(root(salt), np.array(ids, np.int32), block_size))


def test_the_vectors_in_the_documentation_hold():
    text = (Path(__file__).parents[2] / "docs" / "prefix-cache.md").read_text(encoding="utf-8")
    vectors = json.loads(re.search(r"```json\n(.*?)```", text, re.DOTALL)[1])
    assert len(vectors) == 3
    for vector in vectors:
        assert root(vector["salt"]).hex() == vector["root"]
        found = digests(vector["tokens"], vector["block_size"], vector["salt"])
        assert [digest.hex() for digest in found] == vector["digests"]


def test_the_chain_is_what_its_description_says():
    assert root("").hex() == hashlib.sha256(b"batchyard/prefix/1\0").hexdigest()[:32]
    first = hashlib.sha256(root("tenant") + struct.pack("<4I", 1, 2, 3, 70000)).digest()[:16]
    second = hashlib.sha256(first + struct.pack("<4I", 5, 6, 7, 8)).digest()[:16]
    assert digests([1, 2, 3, 70000, 5, 6, 7, 8, 9], 4, "tenant") == [first, second]


@given(tokens, tokens, st.sampled_from([1, 4, 16]))
def test_two_chains_agree_exactly_on_their_common_blocks(a, b, block_size):
    same = 0
    while (same + 1) * block_size <= min(len(a), len(b)) and a[: (same + 1) * block_size] == b[
        : (same + 1) * block_size
    ]:
        same += 1
    pairs = list(zip(digests(a, block_size), digests(b, block_size), strict=False))
    assert [x == y for x, y in pairs] == [True] * same + [False] * (len(pairs) - same)


@given(tokens, st.integers(1, 20), st.integers(0, 80))
def test_a_chain_can_be_continued(ids, block_size, cut):
    whole = digests(ids, block_size)
    done = min(cut, len(whole))
    rest = np.array(ids[done * block_size :], np.int32)
    assert list(chain(whole[done - 1] if done else root(""), rest, block_size)) == whole[done:]


@given(st.text(), st.text())
def test_salts_separate(a, b):
    assert (root(a) == root(b)) == (a == b)
