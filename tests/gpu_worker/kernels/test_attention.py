"""Paged attention in Triton against the reference."""

import pytest
import torch

from gpu_worker.kernels.reference import TorchOps
from gpu_worker.kernels.triton_ops import TritonOps

# Query heads to KV heads 1, 2, 4, 7 and 8 to 1; head_dims tiny or no power of two; blocks of other sizes.
HEADS = [(2, 2, 64, 16), (4, 2, 80, 32), (4, 1, 128, 16), (7, 1, 96, 16), (16, 2, 32, 4), (4, 2, 8, 8)]
# Among them sequences of one token, of whole blocks and of whole tiles, and padding.
DECODES = [(1, 1), (1, 16), (1, 0), (1, 64), (1, 141), (1, 32)]
CHUNKS = [(3, 3), (16, 32), (2, 130), (40, 40), (1, 20), (64, 64)]
MIXED = [(1, 50), (1, 1), (1, 128), (21, 21), (5, 75)]
BATCHES = {"decodes": DECODES, "chunks": CHUNKS, "mixed": MIXED}


def check(batch, ops, window, assert_close):
    actual = ops.attention(*batch.attention_inputs(), window)
    assert_close(actual, TorchOps().attention(*batch.reference().attention_inputs(), window))


@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("sequences", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_attention(make_batch, heads, sequences, window, dtype, device, assert_close):
    check(make_batch(sequences, heads, dtype, device), TritonOps(1), window, assert_close)


@pytest.mark.parametrize("window", [None, 9, 70])
@pytest.mark.parametrize("sequences", [DECODES, MIXED], ids=["decodes", "mixed"])
def test_keys_in_segments(make_batch, sequences, window, dtype, device, assert_close):
    """Short sequences where the launch reckons with long ones: many a segment is empty."""
    batch = make_batch(sequences, (4, 2, 64, 16), dtype, device, max_seq_len=800)
    check(batch, TritonOps(500), window, assert_close)


def test_a_long_decode_in_segments(make_batch, dtype, device, assert_close):
    check(make_batch([(1, 1030)], (8, 1, 64, 16), dtype, device), TritonOps(132), None, assert_close)


def test_many_short_chunks(make_batch, dtype, device, assert_close):
    """Query blocks are shared out right: chunks around the size of a block, and decodes before them."""
    heads = (4, 1, 16, 16)
    lengths = (31, 32, 33, 2, 65, 5, 63, 3)
    batch = make_batch([(1, 4), (1, 9), *((length, length) for length in lengths)], heads, dtype, device)
    check(batch, TritonOps(1), None, assert_close)


def test_tokens_of_no_sequence_are_left_alone(make_batch, device):
    """A step padded with tokens behind the last sequence computes the others as ever."""
    batch = make_batch(MIXED, (4, 2, 64, 16), torch.float32, device)
    q, *rest = batch.attention_inputs()
    padded = torch.cat((q, q.new_full((7, *q.shape[1:]), torch.nan)))
    actual = TritonOps(1).attention(padded, *rest, None)
    torch.testing.assert_close(actual[: len(q)], TritonOps(1).attention(q, *rest, None), rtol=0, atol=0)
