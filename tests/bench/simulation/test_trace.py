import json

import numpy as np

from bench.simulation.lru import IdealCache
from bench.simulation.trace import BLOCK, Arrival, ideal_hit_rate, read


def test_equal_content_is_equal_tokens(tmp_path):
    rows = [
        {"timestamp": 0, "input_length": 600, "output_length": 3, "hash_ids": [7, 8]},
        {"timestamp": 2000, "input_length": 1024, "output_length": 0, "hash_ids": [7, 9]},
        {"timestamp": 4000, "input_length": 5, "output_length": 1, "hash_ids": [1]},
    ]
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = read(path, pace=2.0, most=2)
    assert (second.at, second.output) == (1.0, 1)
    assert [len(first.tokens()), len(second.tokens())] == [600, 1024]
    assert np.array_equal(first.tokens()[:BLOCK], second.tokens()[:BLOCK])
    assert not set(first.tokens()[BLOCK:].tolist()) & set(second.tokens()[BLOCK:].tolist())


def test_the_ideal_cache_drops_what_was_used_longest_ago_and_tails_first():
    cache = IdealCache(3)
    assert cache.visit("abc") == 0
    assert cache.visit("abx") == 2  # c, the tail of the first, makes room
    assert cache.visit("ab") == 2
    assert cache.visit("abc") == 2  # and x now
    assert cache.visit("abx") == 2


def test_a_prompt_in_the_cache_leaves_one_token_to_compute():
    arrivals = [Arrival(0.0, 2 * BLOCK, 1, (1, 2))] * 2
    assert ideal_hit_rate(arrivals, 10 * BLOCK) == (2 * BLOCK - 1) / (4 * BLOCK)
    assert ideal_hit_rate(arrivals, 0) == 0
