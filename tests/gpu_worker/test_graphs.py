"""CUDA graphs of decode steps; where there is no GPU, what they are fed."""

import itertools
import random

import numpy as np
import pytest
import torch

from gpu_worker.graphs import DecodeGraphs, DeviceTables, graph_sizes
from gpu_worker.inputs import build_inputs, gathered_tables
from gpu_worker.kernels.decode_inputs import decode_inputs
from gpu_worker.mixed_graphs import MixedGraphs
from gpu_worker.staging import stager_for
from gpu_worker.step_diff import parse_batch
from tests.gpu_worker.helpers import (
    VOCAB,
    HandScheduler,
    batch,
    load_tiny,
    make_runner,
    new_row,
    random_prompts,
    run_step,
    sampled_of,
)
from tests.gpu_worker.test_runner import make_jobs

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("max_rows", [1, 3, 4, 7, 64, 100, 256, 300, 512])
def test_sizes_end_with_all_rows(max_rows):
    sizes = graph_sizes(max_rows)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == max_rows
    assert all(b - a <= max(8, a // 4) for a, b in itertools.pairwise(sizes))


def test_inputs_built_on_the_device_are_those_of_the_host(tiny_model):
    """Rows enter, grow and leave; the kernel must feed the model what `build_inputs` would."""
    rows = make_runner(tiny_model, max_rows=6, num_blocks=64).rows
    rows.tokens = torch.arange(rows.tokens.numel(), dtype=torch.int32).view_as(rows.tokens).to(DEVICE)
    tables = DeviceTables(rows, DEVICE)
    randomly = random.Random(3)
    blocks = iter(randomly.sample(range(64), 64))
    entries = [
        new_row(r, [1] * n, [next(blocks) for _ in range(-(-n // 8))]) for r, n in enumerate((8, 15, 3, 16))
    ]
    first = batch(1, entries, chunks=[(0, 8), (1, 15), (2, 3), (3, 16)])
    grow = batch(2, grown=[(3, next(blocks)), (0, next(blocks)), (3, next(blocks))], freed=[2])
    for message in (first, grow):
        diff = parse_batch(message, VOCAB)
        upload = stager_for(DEVICE).begin()
        apply = tables.stage(diff.entries, rows.apply(diff), upload)
        upload.send()
        apply()
        plan = rows.plan(diff)
        if message is first:
            rows.advance(plan)
    size = len(plan.rows) + 2  # two of padding
    padded = np.full((2, size), rows.limits.max_rows, np.int32)
    padded[1] = 0
    padded[0, : len(plan.rows)], padded[1, : len(plan.rows)] = plan.rows, plan.starts
    ids, positions, seq_lens, slots = (
        torch.full((size,), -7, dtype=torch.int32, device=DEVICE) for _ in range(4)
    )
    gathered = torch.full((size, rows.limits.max_blocks_per_row), -7, dtype=torch.int32, device=DEVICE)
    row_numbers, computed = torch.from_numpy(padded).to(DEVICE)
    outputs = (ids, positions, seq_lens, slots, gathered)
    decode_inputs(row_numbers, computed, rows.tokens, tables.tables, outputs, 8)

    expected, expected_tables = build_inputs(rows, plan), gathered_tables(rows, plan)
    n = len(plan.rows)
    assert ids[:n].tolist() == expected.token_places.tolist()  # tokens are numbered by their places
    assert positions[:n].tolist() == expected.positions.tolist()
    assert seq_lens.tolist() == [*expected.seq_lens.tolist(), 0, 0]
    assert slots.tolist() == [*expected.slots.tolist(), -1, -1]
    for i, length in enumerate(expected.seq_lens.tolist()):
        held = -(-length // 8)
        assert gathered[i, :held].tolist() == expected_tables[i, :held].tolist()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("params", [{}, {"temperature": 1.0, "top_p": 0.9, "logprobs": 2}], ids=str)
def test_graphs_give_the_same_answers(tiny_llama, params):
    from gpu_worker.kernels.triton_ops import TritonOps

    model = load_tiny(tiny_llama[0], TritonOps.for_device(DEVICE), "cuda")
    eager = HandScheduler(make_runner(model)).run(make_jobs(**params))
    runner = make_runner(model)
    runner.capture_graphs(lambda: None)
    replays = []

    class Counted(DecodeGraphs):
        def replay(self, inputs, num_rows, *, shared):
            replays.append(num_rows)
            return super().replay(inputs, num_rows, shared=shared)

    class CountedMixed(MixedGraphs):
        def replay(self, vector, plan):
            mixed_replays.append(plan.num_tokens)
            return super().replay(vector, plan)

    mixed_replays = []
    runner._graphs.__class__ = Counted
    runner._mixed_graphs.__class__ = CountedMixed
    assert HandScheduler(runner, in_flight=3).run(make_jobs(**params)) == eager
    assert replays
    assert mixed_replays


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_graphs_that_read_shared_keys_once_give_the_same_answers(tiny_llama, monkeypatch):
    from gpu_worker.kernels.triton_ops import TritonOps

    monkeypatch.setattr("gpu_worker.shared_prefixes._LEAST", 64)
    model = load_tiny(tiny_llama[0], TritonOps.for_device(DEVICE), "cuda")
    prompt = random_prompts(80)[0]
    tails = random_prompts(9, 17, 30, seed=2)
    answers = []
    for graphs in (False, True):
        runner = make_runner(model, max_batched_tokens=128, num_blocks=64)
        if graphs:
            runner.capture_graphs(lambda: None)
        shared = list(range(10))
        answer = [
            sampled_of(run_step(runner, batch(1, [new_row(3, prompt, [*shared, 10, 11])], chunks=[(3, 80)])))
        ]
        rows = [
            new_row(row, prompt + tail, [*shared, *range(12 + 6 * row, 18 + 6 * row)], computed=80)
            for row, tail in enumerate(tails)
        ]
        chunks = [(row, len(tail)) for row, tail in enumerate(tails)]
        answer.append(sampled_of(run_step(runner, batch(2, rows, chunks=chunks))))
        answer += [sampled_of(run_step(runner, batch(step))) for step in range(3, 9)]
        answers.append(answer)
    plan = runner.rows.plan(parse_batch(batch(9), VOCAB))
    assert runner._shared_prefixes.among(plan) is not None
    assert answers[0] == answers[1]
