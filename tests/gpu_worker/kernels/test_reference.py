"""What the operations mean, against the formulas written out plainly."""

import pytest
import torch

from gpu_worker.kernels.reference import TorchOps

HEADS = (6, 2, 24, 16)
MIXED = [(1, 1), (1, 16), (1, 0), (1, 33), (1, 200), (7, 7), (5, 37), (16, 32), (1, 20)]


def dense_attention(batch, window):
    """Sequence by sequence and head by head, every score computed, in float64. [T, num_heads * head_dim]."""
    q, k_cache, v_cache, metadata, scale = batch.attention_inputs()
    block_size, num_kv_heads = k_cache.shape[1:3]
    out = torch.zeros(q.shape, dtype=torch.float64)
    for s, seq_len in enumerate(metadata.seq_lens.tolist()):
        if not seq_len:
            continue
        first, end = metadata.query_start[s : s + 2].tolist()
        blocks = metadata.block_tables[s, : -(-seq_len // block_size)].long()
        keys, values = (cache[blocks].flatten(0, 1)[:seq_len].double() for cache in (k_cache, v_cache))
        for token in range(first, end):
            position = seq_len - (end - token)
            start = 0 if window is None else max(0, position - window + 1)
            for head in range(q.shape[1]):
                kv_head = head * num_kv_heads // q.shape[1]
                scores = keys[start : position + 1, kv_head] @ q[token, head].double() * scale
                out[token, head] = scores.softmax(0) @ values[start : position + 1, kv_head]
    return out.flatten(1)


@pytest.mark.parametrize("window", [None, 5, 30, 1000])
@pytest.mark.parametrize("heads", [HEADS, (4, 4, 64, 32), (7, 1, 16, 4)])
def test_attention_is_a_dense_softmax(make_batch, heads, window):
    batch = make_batch(MIXED, heads)
    actual = TorchOps().attention(*batch.attention_inputs(), window)
    torch.testing.assert_close(actual.double(), dense_attention(batch, window), rtol=1e-5, atol=1e-5)


def test_decodes_that_do_not_fit_one_gather(make_batch):
    """Rows of very different lengths, far more keys than are gathered at once."""
    batch = make_batch([(1, length) for length in (20, 900, 30, 1000, 25, 999)], (4, 4, 64, 16))
    actual = TorchOps().attention(*batch.attention_inputs(), None)
    torch.testing.assert_close(actual.double(), dense_attention(batch, None), rtol=1e-5, atol=1e-5)


def test_layers_with_and_without_a_window_share_a_step(make_batch):
    batch = make_batch(MIXED, HEADS)
    ops = TorchOps()
    for window in (None, 5, None):
        actual = ops.attention(*batch.attention_inputs(), window)
        torch.testing.assert_close(actual.double(), dense_attention(batch, window), rtol=1e-5, atol=1e-5)


def test_the_next_step_is_planned_anew(make_batch):
    ops = TorchOps()
    for sequences in (MIXED, MIXED[:4], MIXED[5:]):
        batch = make_batch(sequences, HEADS)
        actual = ops.attention(*batch.attention_inputs(), None)
        torch.testing.assert_close(actual.double(), dense_attention(batch, None), rtol=1e-5, atol=1e-5)


def test_in_inference_mode_and_out_of_it(make_batch):
    batch, ops = make_batch(MIXED, HEADS), TorchOps()
    with torch.inference_mode():
        inside = ops.attention(*batch.attention_inputs(), None)
    assert torch.equal(ops.attention(*batch.attention_inputs(), None), inside)


def test_rms_norm():
    x, weight = torch.randn(5, 3, 40), torch.randn(40)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight
    torch.testing.assert_close(TorchOps().rms_norm(x, weight, 1e-5), expected)


def test_add_rms_norm_keeps_the_sum():
    x, residual, weight = torch.randn(5, 40), torch.randn(5, 40), torch.randn(40)
    total = x + residual
    ops = TorchOps()
    normed = ops.add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(residual, total)
    assert torch.equal(normed, ops.rms_norm(total, weight, 1e-5))


def test_gated_linear():
    x, weight, bias = torch.randn(5, 40), torch.randn(60, 40), torch.randn(60)
    gate, up = (x @ weight.T + bias).chunk(2, dim=-1)
    expected = gate / (1 + torch.exp(-gate)) * up
    torch.testing.assert_close(TorchOps().gated_linear(x, weight, bias), expected)


def test_logits_into_what_is_given():
    x, weight, out = torch.randn(5, 40).half(), torch.randn(60, 40).half(), torch.empty(5, 60)
    assert TorchOps().logits(x, weight, out) is out
    assert torch.equal(TorchOps().logits(x, weight), out)
    assert torch.equal(out, (x @ weight.T).float())


def test_heads_are_normed_before_they_are_rotated(make_batch):
    batch = make_batch(MIXED, HEADS, norm=True)
    expected = batch.reference()
    norm, ops = batch.heads.qk_norm, TorchOps()
    q, k, v = expected.split
    q, k = ops.rms_norm(q, norm.q_weight, norm.eps), ops.rms_norm(k, norm.k_weight, norm.eps)
    ops.rope_and_cache(q, k, v, batch.cos_sin, expected.k_cache, expected.v_cache, batch.metadata)
    attended = ops.attention(q, expected.k_cache, expected.v_cache, batch.metadata, batch.heads.scale, None)
    torch.testing.assert_close(batch.attend(ops), attended)
    torch.testing.assert_close(batch.k_cache, expected.k_cache, equal_nan=True)


def test_rope_turns_pairs_as_complex_numbers(make_batch):
    batch = make_batch(MIXED, HEADS)
    angles = torch.rand(300, 12) * 6
    turn = torch.polar(torch.ones(300, 12), angles)[batch.metadata.positions].unsqueeze(1)
    expected = [torch.complex(x[..., :12], x[..., 12:]) * turn for x in batch.split[:2]]
    rotate(batch, angles)
    for x, turned in zip(batch.split[:2], expected, strict=True):
        torch.testing.assert_close(x, torch.cat((turned.real, turned.imag), dim=-1))


def test_keys_and_values_go_to_their_slots_and_padding_nowhere(make_batch):
    batch = make_batch(MIXED, HEADS)
    slots = batch.metadata.slots
    assert (slots < 0).any()
    before = [cache.flatten(0, 1).clone() for cache in (batch.k_cache, batch.v_cache)]
    rotate(batch, torch.rand(300, 12))
    for cache, old, new in zip((batch.k_cache, batch.v_cache), before, batch.split[1:], strict=True):
        old[slots[slots >= 0]] = new[slots >= 0]
        torch.testing.assert_close(cache.flatten(0, 1), old, rtol=0, atol=0, equal_nan=True)


def test_a_step_without_padding_is_cached_whole(make_batch):
    batch = make_batch(MIXED[:2], HEADS)
    rotate(batch, torch.rand(300, 12))
    assert torch.equal(batch.k_cache.flatten(0, 1)[batch.metadata.slots], batch.split[1])


def rotate(batch, angles):
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=-1)
    TorchOps().rope_and_cache(*batch.split, cos_sin, batch.k_cache, batch.v_cache, batch.metadata)
