"""Attention over a paged cache in Triton, with norms, rotation and cache writes, against the reference."""

from dataclasses import replace

import pytest
import torch

from gpu_worker.kernels.device_traits import DeviceTraits
from gpu_worker.kernels.launch_shapes import shared_tile
from gpu_worker.kernels.metadata import SharedKeys
from gpu_worker.kernels.paged_attention import PagedAttention
from gpu_worker.kernels.reference import TorchOps
from gpu_worker.kernels.triton_ops import TritonOps

# Query heads to KV heads 1, 2, 4, 7 and 8 to 1; head_dims tiny or no power of two; blocks of other sizes.
HEADS = [(2, 2, 64, 16), (4, 2, 80, 32), (4, 1, 128, 16), (7, 1, 96, 16), (16, 2, 32, 4), (4, 2, 8, 8)]
# Among them sequences of one token, of whole blocks and of whole tiles, and padding.
DECODES = [(1, 1), (1, 16), (1, 0), (1, 64), (1, 65), (1, 141), (1, 32)]
CHUNKS = [(3, 3), (16, 32), (2, 130), (40, 40), (1, 20), (64, 64)]
MIXED = [(1, 50), (1, 1), (1, 128), (21, 21), (5, 75)]
BATCHES = {"decodes": DECODES, "chunks": CHUNKS, "mixed": MIXED}


def ops_for(multiprocessors=1):
    return TritonOps(DeviceTraits(multiprocessors))


def check(batch, ops, assert_close):
    """What comes out, and what is in the cache afterwards."""
    expected = batch.reference()
    before = batch.k_cache.isnan().cpu()
    assert_close(batch.attend(ops), expected.attend(TorchOps()))
    for ours, theirs in ((batch.k_cache, expected.k_cache), (batch.v_cache, expected.v_cache)):
        # NaN where nothing was ever to be written, in both.
        assert torch.equal(ours.isnan().cpu(), before)
        assert_close(ours[~before], theirs[~before])


@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("sequences", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_attend(make_batch, heads, sequences, window, dtype, device, assert_close):
    check(make_batch(sequences, heads, dtype, device, window=window), ops_for(), assert_close)


@pytest.mark.parametrize("heads", [(4, 2, 64, 16), (6, 2, 80, 32)], ids=str)
def test_norms_before_the_rotation(make_batch, heads, dtype, device, assert_close):
    check(make_batch(MIXED, heads, dtype, device, norm=True), ops_for(), assert_close)


@pytest.mark.parametrize("window", [None, 9, 70])
@pytest.mark.parametrize("sequences", [DECODES, MIXED], ids=["decodes", "mixed"])
def test_keys_in_segments(make_batch, sequences, window, dtype, device, assert_close):
    """Short sequences where the launch reckons with long ones: many a segment is empty."""
    batch = make_batch(sequences, (4, 2, 64, 16), dtype, device, max_seq_len=800, window=window)
    check(batch, ops_for(500), assert_close)


@pytest.mark.parametrize("window", [None, 600])
def test_a_long_decode_in_segments(make_batch, window, dtype, device, assert_close):
    batch = make_batch([(1, 1030), (1, 700), (1, 3)], (8, 1, 64, 16), dtype, device, window=window)
    ops = ops_for(132)
    check(batch, ops, assert_close)
    # What counts the segments is 0 again: the next step is right as well.
    check(make_batch([(1, 1030), (1, 520)], (8, 1, 64, 16), dtype, device), ops, assert_close)


def test_a_long_context_before_a_short_chunk(make_batch, dtype, device, assert_close):
    check(make_batch([(5, 900)], (4, 2, 64, 16), dtype, device), ops_for(132), assert_close)


def test_many_short_chunks(make_batch, dtype, device, assert_close):
    """Query blocks are shared out right: chunks around the size of a block, and decodes before them."""
    heads = (4, 1, 16, 16)
    lengths = (31, 32, 33, 2, 65, 5, 63, 3)
    batch = make_batch([(1, 4), (1, 9), *((length, length) for length in lengths)], heads, dtype, device)
    check(batch, ops_for(), assert_close)


def share(batch, groups, most_members):
    """Gives the sequences of each group, (tokens, sequences), the first one's blocks for these tokens."""
    metadata, size = batch.metadata, batch.k_cache.shape[1]
    tokens = torch.zeros(metadata.num_decodes, dtype=torch.int32)
    members = torch.full((len(groups) + 1, most_members), -1, dtype=torch.int32)
    for number, (shared, seqs) in enumerate(groups):
        metadata.block_tables[seqs, : shared // size] = metadata.block_tables[seqs[0], : shared // size]
        members[number, : len(seqs)] = torch.tensor(seqs, dtype=torch.int32)
        tokens[seqs] = shared
    group_tokens = torch.tensor([shared for shared, _ in groups] + [0], dtype=torch.int32)
    count = torch.tensor([len(groups)], dtype=torch.int32)
    device = metadata.counts.device
    keys = SharedKeys(*(part.to(device) for part in (members, group_tokens, tokens, count)))
    return replace(batch, metadata=replace(metadata, shared_keys=keys))


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("multiprocessors", [1, 132])
@pytest.mark.parametrize("heads", [(4, 2, 64, 16), (8, 1, 32, 16), (3, 3, 80, 16)], ids=str)
def test_keys_that_sequences_share(make_batch, heads, multiprocessors, norm, dtype, device, assert_close):
    """Groups of two and three, and sequences in none; in segments and not."""
    decodes = [(1, 600), (1, 70), (1, 520), (1, 5), (1, 600), (1, 129), (1, 200)]
    batch = make_batch([*decodes, (5, 30)], heads, dtype, device, norm=norm, max_seq_len=800)
    members = shared_tile(heads[0] // heads[1], heads[2], dtype.itemsize).block_q
    batch = share(batch, [(512, [0, 2, 4]), (128, [6, 5])], members)
    check(batch, ops_for(multiprocessors), assert_close)


def test_windows_do_without_shared_keys(make_batch, dtype, device, assert_close):
    batch = make_batch([(1, 300), (1, 280)], (4, 2, 64, 16), dtype, device, window=50)
    check(share(batch, [(256, [0, 1])], 32), ops_for(), assert_close)


def test_chunks_without_their_keys_are_refused(make_batch):
    batch = make_batch([(3, 3)], (4, 2, 64, 16))
    object.__setattr__(batch.metadata, "chunk_keys", None)
    with pytest.raises(AssertionError, match="where their keys are"):
        PagedAttention(DeviceTraits(1))(
            batch.packed, batch.heads, batch.cos_sin, (batch.k_cache, batch.v_cache), batch.metadata
        )
