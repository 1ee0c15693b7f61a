"""What only a GPU shows: launches never wait for it, and can be captured."""

import pytest
import torch

from gpu_worker.kernels.reference import TorchOps
from gpu_worker.kernels.triton_ops import TritonOps

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


def test_a_captured_decode_serves_other_lengths(make_batch):
    """Capture fails if anything waits for the device, and bakes in all that the host decided."""
    heads = (8, 2, 128, 16)
    batch = make_batch([(1, 900), (1, 40), (1, 17)], heads, torch.bfloat16, "cuda", max_seq_len=4096)
    ops = TritonOps.for_device(torch.device("cuda"))
    cos_sin = torch.rand(1000, 128, device="cuda")
    hidden = torch.randn(3, 2048, device="cuda", dtype=torch.bfloat16)

    def step():
        normed = ops.add_rms_norm(hidden, hidden.clone(), ops.rms_norm(hidden, hidden[0], 1e-5)[0], 1e-5)
        ops.rope_and_cache(batch.q, batch.k, batch.v, cos_sin, batch.k_cache, batch.v_cache, batch.metadata)
        return ops.attention(*batch.attention_inputs(), None), ops.swiglu(normed)

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attended, _ = step()
    # Shorter sequences, and one that is padding now. What is cached is not to change any more.
    batch.metadata.seq_lens.copy_(torch.tensor([500, 33, 0], dtype=torch.int32))
    batch.metadata.slots.fill_(-1)
    queries = batch.q.clone()
    graph.replay()
    expected = batch.reference()
    assert not torch.equal(batch.q, queries)
    torch.testing.assert_close(
        attended.float().cpu(),
        TorchOps().attention(*expected.attention_inputs(), None),
        rtol=3e-2,
        atol=3e-2,
    )
