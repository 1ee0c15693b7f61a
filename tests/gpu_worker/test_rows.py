"""The row table against a model of it made of lists, over random steps; and what it refuses."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from batchyard.errors import ProtocolError
from gpu_worker.inputs import build_inputs, gathered_tables, sampled_places, sampling_tokens
from gpu_worker.row_checks import check
from gpu_worker.rows import RowLimits, RowTable
from gpu_worker.step_diff import parse_batch
from protos.step_pb2 import StepBatch
from tests.gpu_worker.helpers import batch, new_row

LIMITS = RowLimits(max_rows=4, max_model_len=20, max_batched_tokens=24, num_blocks=30, block_size=4)
VOCAB = 50


def make_table():
    return RowTable(LIMITS, VOCAB, torch.device("cpu"))


def advance(table, message):
    """One step without a model: its plan, its inputs, block tables, and where what it samples goes."""
    diff = parse_batch(message, VOCAB)
    check(table, diff)
    table.apply(diff)
    plan = table.plan(diff)
    inputs = build_inputs(table, plan) if len(plan.rows) else None
    tables = gathered_tables(table, plan) if len(plan.rows) else None
    places = sampled_places(table, plan)
    table.advance(plan)
    return plan, inputs, tables, places


@dataclass
class Row:
    """What a row is, without arrays."""

    prompt_len: int
    known: int
    computed: int
    blocks: list = field(default_factory=list)
    decoding: bool = False


class Composer:
    """Composes random steps that are allowed, on a model of the rows."""

    def __init__(self, draw):
        self.draw = draw
        self.rows = {}
        self.step = 0

    def choose(self, items):
        return self.draw(st.lists(st.sampled_from(items), unique=True)) if items else []

    def compose(self):
        """(message, {row: tokens} of the sequences that take part, decoding ones first)."""
        self.step += 1
        freed = self.choose(sorted(self.rows))
        # A row at its end must go, for it would decode on.
        freed += [
            r
            for r, row in self.rows.items()
            if row.decoding and row.known > LIMITS.max_model_len and r not in freed
        ]
        for r in freed:
            del self.rows[r]
        new = [self.enter(r) for r in self.choose([r for r in range(4) if r not in self.rows])]
        grown = [pair for r in sorted(self.rows) for pair in self.grow(r)]
        work = {r: 1 for r in sorted(self.rows) if self.rows[r].decoding}
        chunks = {
            r: length
            for r in self.choose([r for r, row in self.rows.items() if not row.decoding])
            if (length := self.chunk(r))
        }
        while sum(work.values()) + sum(chunks.values()) > LIMITS.max_batched_tokens:
            chunks.popitem()
        self.expected = {**work, **chunks}
        return batch(self.step, new, freed, grown, list(chunks.items()))

    def enter(self, r):
        known = self.draw(st.integers(1, LIMITS.max_model_len))
        computed = self.draw(st.integers(0, known - 1))
        blocks = self.draw(st.integers(-(-computed // 4), LIMITS.max_blocks_per_row))
        ids = self.draw(st.lists(st.integers(0, 29), min_size=blocks, max_size=blocks))
        self.rows[r] = Row(self.draw(st.integers(1, known)), known, computed, ids)
        prompt_len = self.rows[r].prompt_len
        return new_row(r, [3] * known, ids.copy(), computed=computed, prompt_len=prompt_len)

    def grow(self, r):
        row = self.rows[r]
        least = max(0, -(-row.known // 4) - len(row.blocks)) if row.decoding else 0
        count = self.draw(st.integers(least, LIMITS.max_blocks_per_row - len(row.blocks)))
        blocks = self.draw(st.lists(st.integers(0, 29), min_size=count, max_size=count))
        row.blocks += blocks
        return [(r, block) for block in blocks]

    def chunk(self, r):
        row = self.rows[r]
        most = min(row.known, len(row.blocks) * 4) - row.computed
        return self.draw(st.integers(1, most)) if most > 0 else 0

    def check_plan(self, plan, inputs, tables, sampled_at):
        assert dict(zip(plan.rows.tolist(), plan.query_lens.tolist(), strict=True)) == self.expected
        decodes = [r for r in self.expected if self.rows[r].decoding]
        assert plan.rows[: plan.num_decodes].tolist() == decodes
        if inputs:
            self.check_inputs(plan, inputs, tables, sampled_at)
        for r, length in self.expected.items():
            self.rows[r].computed += length
            if self.rows[r].computed == self.rows[r].known:
                self.rows[r].known += 1
                self.rows[r].decoding = True

    def check_inputs(self, plan, inputs, tables, sampled_at):
        places, slots, positions, last, sampled = [], [], [], [], []
        width = LIMITS.max_model_len + 1
        for r, length in zip(plan.rows.tolist(), plan.query_lens.tolist(), strict=True):
            row = self.rows[r]
            for position in range(row.computed, row.computed + length):
                positions.append(position)
                places.append(r * width + position)
                slots.append(row.blocks[position // 4] * 4 + position % 4)
            if row.computed + length == row.known:
                last.append(len(positions) - 1)
                sampled.append(r * width + row.known)
        assert inputs.positions.tolist() == positions
        assert inputs.token_places.tolist() == places
        assert inputs.slots.tolist() == slots
        assert sampled_at.tolist() == sampled
        if sampling_tokens(plan) is None:
            assert last == list(range(len(positions)))
        else:
            assert sampling_tokens(plan).tolist() == last
        assert inputs.query_start.tolist() == [0, *np.cumsum(plan.query_lens)]
        assert inputs.seq_lens.tolist() == plan.ends.tolist()
        assert inputs.max_seq_len == plan.ends.max()
        for seq, r in enumerate(plan.rows.tolist()):
            used = -(-int(plan.ends[seq]) // 4)
            assert tables[seq, :used].tolist() == self.rows[r].blocks[:used]

    def check_state(self, table):
        assert np.flatnonzero(table.active).tolist() == sorted(self.rows)
        assert table.num_held_blocks == sum(len(row.blocks) for row in self.rows.values())
        for r, row in self.rows.items():
            assert (table.computed[r], table.known[r], table.prompt_len[r], table.decoding[r]) == (
                row.computed,
                row.known,
                row.prompt_len,
                row.decoding,
            )
            assert table.block_tables[r, : table.num_blocks[r]].tolist() == row.blocks


@settings(max_examples=60)
@given(st.data())
def test_random_steps_do_what_the_protocol_says(data):
    table, composer = make_table(), Composer(data.draw)
    for _ in range(data.draw(st.integers(1, 12))):
        composer.check_plan(*advance(table, composer.compose()))
        composer.check_state(table)


def prepared():
    """Row 0 decodes with 9 tokens known in 3 blocks, row 1 prefills (8 of 12, 3 blocks), 2 and 3 are free."""
    table = make_table()
    entries = [new_row(0, [1] * 8, [0, 1, 2]), new_row(1, [2] * 12, [3, 4, 5])]
    advance(table, batch(1, entries, chunks=[(0, 8), (1, 8)]))
    return table


WRONG = {
    "step out of order": (batch(3), "step 3 came where step 2 was due"),
    "step repeated": (batch(1), "step 1 came where step 2 was due"),
    "freed unknown row": (batch(2, freed=[2]), "freed row 2 is unknown"),
    "freed row outside": (batch(2, freed=[-1]), "freed row -1 is outside the 4 rows"),
    "freed twice": (batch(2, freed=[0, 0]), "freed twice"),
    "row taken": (batch(2, [new_row(1, [1], [9])]), "new row 1 is taken"),
    "row taken in the same step": (batch(2, [new_row(2, [1], [9])] * 2), "new row 2 is taken"),
    "row outside": (batch(2, [new_row(4, [1], [9])]), "new row 4 is outside"),
    "no tokens": (batch(2, [new_row(2, [], [9])]), "row 2 has no tokens"),
    "too many tokens": (batch(2, [new_row(2, [1] * 21, [9])]), "21 tokens, above max_model_len 20"),
    "token outside": (batch(2, [new_row(2, [50], [9])]), "outside the vocabulary of 50"),
    "prompt longer than tokens": (batch(2, [new_row(2, [1], [9], prompt_len=2)]), "prompt_len 2 of 1"),
    "everything computed": (batch(2, [new_row(2, [1] * 4, [9], computed=4)]), "4 of 4 tokens computed"),
    "computed without blocks": (batch(2, [new_row(2, [1] * 9, [9], computed=5)]), "5 tokens .* in 1 blocks"),
    "block outside": (batch(2, [new_row(2, [1], [30])]), "block 30 is outside the 30 blocks"),
    "too many blocks": (batch(2, [new_row(2, [1], range(6))]), "row 2 has 6 blocks, above 5"),
    "growth of an unknown row": (batch(2, grown=[(3, 9)]), "grown row 3 is unknown"),
    "growth by a block outside": (batch(2, grown=[(0, -1)]), "block -1 is outside"),
    "growth beyond the longest": (batch(2, grown=[(0, 9)] * 3), "row 0 grows beyond 5 blocks"),
    "chunk of an unknown row": (batch(2, chunks=[(2, 1)]), "chunk row 2 is unknown"),
    "chunk of a freed row": (batch(2, freed=[1], chunks=[(1, 1)]), "chunk row 1 is unknown"),
    "chunk of a decoding row": (batch(2, chunks=[(0, 1)]), "row 0 decodes"),
    "chunk past the known tokens": (batch(2, chunks=[(1, 5)]), "row 1 goes past its 12 known tokens"),
    "chunk without tokens": (batch(2, chunks=[(1, 0)]), "row 1 has a chunk without tokens"),
    "two chunks of a row": (batch(2, chunks=[(1, 1), (1, 1)]), "two chunks"),
    "chunk without a block": (
        batch(2, [new_row(2, [1] * 9, [9, 10])], chunks=[(2, 9)]),
        r"row 2 has too few blocks \(2\)",
    ),
    "too many tokens in the step": (
        batch(2, [new_row(2, [1] * 20, range(5))], chunks=[(1, 4), (2, 20)]),
        "25 tokens, above the 24",
    ),
    "uneven growth": (StepBatch(step=2, grown_rows=b"\0" * 4), "1 grown_rows, but 0 grown_blocks"),
    "uneven chunks": (StepBatch(step=2, chunk_lens=b"\0" * 4), "0 chunk_rows, but 1 chunk_lens"),
    "cut short": (StepBatch(step=2, freed_rows=b"\0\0\0"), "freed_rows is cut short: 3 bytes"),
}


@pytest.mark.parametrize(("message", "complaint"), WRONG.values(), ids=WRONG.keys())
def test_what_is_not_allowed_is_refused_and_changes_nothing(message, complaint):
    table = prepared()
    with pytest.raises(ProtocolError, match=complaint):
        advance(table, message)
    plan, *_ = advance(table, batch(2, chunks=[(1, 4)]))
    assert plan.rows.tolist() == [0, 1]
    assert plan.samples.tolist() == [True, True]
    assert table.num_held_blocks == 6


def test_a_decoding_row_needs_its_block_in_time():
    table = prepared()
    for step in (2, 3, 4, 5):
        advance(table, batch(step))
    assert table.known[0] == 13
    with pytest.raises(ProtocolError, match=r"step 6: row 0 has too few blocks \(3\)"):
        advance(table, batch(6))
    advance(table, batch(6, grown=[(0, 20)]))
    assert table.block_tables[0, :4].tolist() == [0, 1, 2, 20]


def test_a_row_may_be_freed_and_taken_in_one_step():
    table = prepared()
    plan, *_ = advance(table, batch(2, [new_row(0, [7, 8], [9])], freed=[0], chunks=[(0, 2)]))
    assert plan.rows.tolist() == [0]
    assert plan.num_decodes == 0
    assert table.known[0] == 3


def test_generations_count_what_will_be_written():
    table = prepared()
    advance(table, batch(2, [new_row(2, [1] * 10, [3, 4, 9], computed=8)], grown=[(0, 11), (0, 12)]))
    written = {block: int(n) for block, n in enumerate(table.block_generations) if n}
    assert written == dict.fromkeys([0, 1, 2, 3, 4, 5, 9, 11, 12], 1)
    table.reset()
    advance(table, batch(1, [new_row(0, [1] * 4, [9])]))
    assert table.block_generations[9] == 2


def test_reset_frees_everything():
    table = prepared()
    table.reset()
    assert table.num_active == table.num_held_blocks == 0
    plan, *_ = advance(table, batch(1))
    assert len(plan.rows) == 0
