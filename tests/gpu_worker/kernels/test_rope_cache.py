"""RoPE and the write to the cache in Triton against the reference."""

import pytest
import torch

from gpu_worker.kernels.reference import TorchOps
from gpu_worker.kernels.triton_ops import TritonOps

SEQUENCES = [(1, 1), (1, 0), (1, 40), (6, 6), (3, 35)]


@pytest.mark.parametrize("heads", [(4, 4, 64, 16), (6, 2, 80, 32), (7, 1, 128, 16), (6, 3, 96, 4)])
def test_rope_and_cache(make_batch, heads, dtype, device, assert_close):
    batch = make_batch(SEQUENCES, heads, dtype, device)
    expected = batch.reference()
    angles = torch.rand(50, heads[2] // 2) * 6
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=-1)
    for ops, b in ((TritonOps(1), batch), (TorchOps(), expected)):
        ops.rope_and_cache(b.q, b.k, b.v, cos_sin.to(b.q.device), b.k_cache, b.v_cache, b.metadata)
    assert_close(batch.q, expected.q)
    assert_close(batch.k, expected.k)
    # NaN where nothing is to be written, in both.
    written = ~expected.k_cache.isnan()
    assert torch.equal(~batch.k_cache.isnan().cpu(), written)
    assert_close(batch.k_cache[written], expected.k_cache[written])
    assert torch.equal(batch.v_cache[written].float().cpu(), expected.v_cache[written])
