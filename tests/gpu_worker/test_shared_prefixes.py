"""Which sequences share keys."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.rows import RowLimits, RowTable, StepPlan
from gpu_worker.shared_prefixes import SharedLayout, SharedPrefixes

LIMITS = RowLimits(max_rows=12, max_model_len=2048, max_batched_tokens=64, num_blocks=999, block_size=16)


def table_of(prefixes):
    """Rows whose tables begin with these blocks and go on with their own."""
    table = RowTable(LIMITS, 50, torch.device("cpu"))
    own = iter(range(500, 999))
    for row, prefix in enumerate(prefixes):
        blocks = [*prefix, *(next(own) for _ in range(2))]
        table.block_tables[row, : len(blocks)] = blocks
        table.num_blocks[row] = len(blocks)
    return table


def plan_of(rows):
    rows = np.array(rows, np.int64)
    ones = np.ones_like(rows)
    return StepPlan(rows, ones, ones, ones.astype(bool), len(rows))


def test_groups_of_what_shares_enough():
    long, other, short = list(range(40)), list(range(50, 70)), list(range(80, 90))
    table = table_of([long, other, long[:37], short, other, short, [7]])
    found = SharedPrefixes(table, 4).among(plan_of(range(7)))
    groups = {
        tuple(seqs[seqs >= 0].tolist()): tokens
        for seqs, tokens in zip(found.members, found.group_tokens.tolist(), strict=True)
    }
    # 37 and 20 blocks, as far as whole tiles of 64 tokens go; 10 blocks are too few.
    assert groups == {(0, 2): 576, (1, 4): 320}
    assert found.tokens.tolist() == [576, 320, 576, 0, 320, 0, 0]


def test_many_are_shared_out_among_groups():
    table = table_of([list(range(20))] * 11)
    found = SharedPrefixes(table, 4).among(plan_of(range(11)))
    assert sorted(found.members[found.members >= 0].tolist()) == list(range(11))
    assert found.members.shape == (3, 4)
    assert set(found.group_tokens.tolist()) == {320}


def test_nobody_shares():
    table = table_of([list(range(20)), list(range(20, 40))])
    shared = SharedPrefixes(table, 4)
    assert shared.among(plan_of([0, 1])) is None
    assert shared.among(plan_of([])) is None


def test_what_was_found_is_kept_until_rows_come_or_go():
    table = table_of([list(range(20))] * 3)
    shared = SharedPrefixes(table, 4)
    found = shared.among(plan_of([0, 1]))
    assert shared.among(plan_of([0, 1])) is found
    assert shared.among(plan_of([0, 1, 2])) is not found
    table.block_tables[1, 0:20] = range(100, 120)
    shared.forget()
    assert shared.among(plan_of([0, 1])) is None


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30)), min_size=1, max_size=12))
def test_what_is_shared_is_the_same_in_all_tables(shapes):
    table = table_of([[100 * family + i for i in range(length)] for family, length in shapes])
    found = SharedPrefixes(table, 3).among(plan_of(range(len(shapes))))
    if found is None:
        return
    for seqs, tokens in zip(found.members, found.group_tokens.tolist(), strict=True):
        seqs = seqs[seqs >= 0]
        assert len(seqs) >= 1
        assert tokens % 64 == 0
        assert tokens >= 256
        tables = table.block_tables[seqs, : tokens // 16]
        assert (tables == tables[0]).all()
        assert (found.tokens[seqs] == tokens).all()
    alone = np.setdiff1d(np.arange(len(shapes)), found.members)
    assert not found.tokens[alone].any()


@pytest.mark.parametrize("room", [1, 2, 5])
def test_a_vector_of_fixed_size(room):
    table = table_of([list(range(20))] * 2 + [list(range(30, 60))] * 2)
    found = SharedPrefixes(table, 4).among(plan_of(range(4)))
    layout = SharedLayout(seqs=6, groups=room, most_members=4)
    vector = np.full(layout.total, -9, np.int32)
    layout.pack(found, vector)
    keys = layout.keys(torch.split(torch.from_numpy(vector), layout.lengths))
    kept = min(room, 2)
    assert keys.count.tolist() == [kept]
    assert keys.members[:kept].tolist() == found.members[:kept].tolist()
    assert keys.group_tokens.tolist() == [*found.group_tokens[:kept], *[0] * (room - kept)]
    # Who is in a group for which there was no room shares nothing.
    in_groups = found.members[:kept][found.members[:kept] >= 0]
    assert sorted(np.flatnonzero(keys.tokens.numpy())) == sorted(in_groups)
    layout.pack(None, vector)
    assert not vector.any()
