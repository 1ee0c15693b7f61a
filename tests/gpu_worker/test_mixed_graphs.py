"""What graphs of steps that prefill are fed; test_graphs runs them on a GPU."""

import numpy as np
import pytest
import torch

from gpu_worker.graphs import DeviceTables
from gpu_worker.inputs import build_inputs
from gpu_worker.mixed_graphs import MixedGraphs
from gpu_worker.step_diff import parse_batch
from tests.gpu_worker.helpers import VOCAB, batch, make_runner, new_row

CPU = torch.device("cpu")


@pytest.fixture
def graphs(tiny_model):
    """Not captured, which takes a GPU."""
    runner = make_runner(tiny_model, max_rows=6, num_blocks=64)
    made = MixedGraphs(runner.model, runner.rows, DeviceTables(runner.rows, CPU), runner._kv_caches)
    return runner.rows, made


def plan_of(rows, message):
    diff = parse_batch(message, VOCAB)
    rows.apply(diff)
    return rows.plan(diff)


def test_the_vector_holds_the_step_and_nothing_of_others(graphs):
    rows, made = graphs
    entries = [new_row(0, [1] * 9, [3, 4]), new_row(1, [1] * 5, [7])]
    rows.advance(plan_of(rows, batch(1, entries, chunks=[(0, 9), (1, 5)])))
    late = [new_row(3, [1] * 17, [9, 11, 12])]
    plan = plan_of(rows, batch(2, late, chunks=[(3, 17)]))
    inputs = build_inputs(rows, plan)
    vector = torch.from_numpy(made.host_inputs(inputs, plan, None))
    layout = made._layout(made._size_for(plan))
    assert layout.size == 32
    parts = [part.tolist() for part in layout.views(vector)]
    counts, query_start, seq_lens, row_numbers, positions, slots, places, starts, blocks = parts[:9]
    assert not any(parts[9] + parts[11] + parts[12])  # nobody shares
    assert counts[:3] == [2, 3, 3]
    assert query_start[:4] == [0, 1, 2, 19]
    assert seq_lens[:4] == [10, 6, 17, 0]
    assert row_numbers[:3] == [0, 1, 3]
    for part, expected in (
        (positions, inputs.positions),
        (slots, inputs.slots),
        (places, inputs.token_places),
    ):
        assert part[:19] == expected.tolist()
    assert set(slots[19:]) == {-1}
    assert starts[:1] == [0]
    assert blocks[:3] == [9, 11, 12]


def test_what_is_covered(graphs, monkeypatch):
    rows, made = graphs
    plan = plan_of(rows, batch(1, [new_row(0, [1] * 9, [3, 4])], chunks=[(0, 9)]))
    assert not made.covers(plan)  # nothing is captured
    monkeypatch.setattr(made, "_graphs", {16: None})
    assert made.covers(plan)
    with monkeypatch.context() as patch:
        patch.setattr("gpu_worker.mixed_graphs._MOST_KEYS", (8, 8))
        assert not made.covers(plan)  # two blocks of keys
        patch.setattr("gpu_worker.mixed_graphs._MOST_KEYS", (16, 16))
        assert made.covers(plan)
        patch.setattr("gpu_worker.mixed_graphs._MOST_CHUNKS", (0, 0))
        assert not made.covers(plan)
    monkeypatch.setattr(made, "_sizes", [8])
    assert not made.covers(plan)
    monkeypatch.setattr(made, "_sizes", [16])
    rows.advance(plan)
    assert not made.covers(plan_of(rows, batch(2)))  # nothing but decodes
    assert np.count_nonzero(rows.decoding) == 1
