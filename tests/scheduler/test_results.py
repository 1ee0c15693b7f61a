"""Answers that make no sense: each is refused whole, and nothing has changed."""

import numpy as np
import pytest

from batchyard.errors import NanLogits, ProtocolError
from protos.packing import pack_i32, unpack_i32
from protos.sampling_pb2 import Logprobs
from protos.step_pb2 import Moved, RowLogprobs, RowPromptLogprobs
from tests.scheduler.hand_stepped import Bench
from tests.scheduler.simulated_worker import VOCAB


def token(value):
    def change(result):
        tokens = unpack_i32(result.tokens).copy()
        tokens[1] = value
        result.tokens = pack_i32(tokens)

    return change


def rows(values):
    def change(result):
        result.rows = pack_i32(values)

    return change


def of(**fields):
    def change(result):
        for name, value in fields.items():
            setattr(result, name, value)

    return change


def logprobs(row, value=-1.0):
    return lambda result: result.logprobs.append(RowLogprobs(row=row, logprobs=Logprobs(logprob=value)))


def prompt_logprobs(row, value=-1.0):
    positions = [Logprobs(logprob=-1.0), Logprobs(logprob=value)]
    return lambda result: result.prompt_logprobs.append(RowPromptLogprobs(row=row, positions=positions))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (of(step=7), "answer to step 7, expected one to 1"),
        (of(step=0), "answer to step 0, expected one to 1"),
        (of(tokens=b"\x01\x02\x03"), "step 1: buffer size"),
        (of(rows=b"\x01"), "step 1: buffer size"),
        (of(rows=b"", tokens=b""), "sampled rows"),
        (rows([0, 0, 1]), "sampled rows"),
        (rows([0, 1, 7]), "sampled rows"),
        (rows([0, 1, 1 << 30]), "sampled rows"),
        (of(num_tokens=5), "computed 5 tokens, not 9"),
        (token(VOCAB), "outside the vocabulary"),
        (token(-2), "outside the vocabulary"),
        (token(2**31 - 1), "outside the vocabulary"),
        (logprobs(5), "of row 5 make no sense"),
        (logprobs(-1), "of row -1 make no sense"),
        (logprobs(1, np.nan), "of row 1 make no sense"),
        (prompt_logprobs(1 << 20), "of row 1048576 make no sense"),
        (prompt_logprobs(1, np.nan), "of row 1 make no sense"),
    ],
)
def test_nonsense(change, complaint):
    bench = Bench()
    for n in range(3):
        bench.add([n, n, n], 5)
    assert bench.send()
    step = bench.in_flight[0]
    sane = bench.simulated.execute(step.batch)
    nonsense = type(sane).FromString(sane.SerializeToString())
    change(nonsense)
    lengths = bench.batcher.rows.length.copy()
    with pytest.raises(ProtocolError, match=complaint):
        bench.handler.apply(step, nonsense)
    assert (bench.batcher.rows.length == lengths).all()
    bench.sessions.flush()
    assert bench.session.outbox.empty()
    bench.check()
    assert bench.handler.apply(step, sane) == 3


def test_logits_that_are_no_numbers_name_their_rows():
    bench = Bench()
    for n in range(3):
        bench.add([n, n, n], 5)
    bench.send()
    result = bench.simulated.execute(bench.in_flight[0].batch)
    token(-1)(result)
    with pytest.raises(NanLogits) as raised:
        bench.handler.apply(bench.in_flight[0], result)
    assert raised.value.rows == [unpack_i32(result.rows)[1]]


@pytest.mark.parametrize("moved", [Moved(saved=9), Moved(loaded=9)], ids=["saved", "loaded"])
def test_moves_that_nobody_asked_for(moved):
    bench = Bench(num_host_blocks=20)
    bench.add([1, 2, 3], 5)
    bench.send()
    with pytest.raises(ProtocolError, match="moves of step 9 are done, which was never sent"):
        bench.batcher.moved(moved)
