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
    hidden, weight = (torch.randn(n, 1024, device="cuda", dtype=torch.bfloat16) * 0.1 for n in (3, 512))

    def step():
        normed = ops.add_rms_norm(hidden, hidden.clone(), ops.rms_norm(hidden, hidden[0], 1e-5)[0], 1e-5)
        return batch.attend(ops), ops.gated_linear(normed, weight, None), ops.linear(normed, weight, None)

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attended, *_ = step()
    # Shorter sequences, and one that is padding now. What is cached is not to change any more.
    batch.metadata.seq_lens.copy_(torch.tensor([500, 33, 0], dtype=torch.int32))
    batch.metadata.positions.copy_(torch.tensor([499, 32, 0], dtype=torch.int32))
    batch.metadata.slots.fill_(-1)
    expected = batch.reference()
    graph.replay()
    # The reference reads the new token's key from the cache.
    tables, last = expected.metadata.block_tables, torch.tensor([499, 32])
    expected.metadata.slots[:2] = tables[[0, 1], last // 16] * 16 + last % 16
    torch.testing.assert_close(attended.float().cpu(), expected.attend(TorchOps()), rtol=3e-2, atol=3e-2)
