"""SwiGLU in Triton against the reference."""

import pytest
import torch

from gpu_worker.kernels.reference import TorchOps
from gpu_worker.kernels.triton_ops import TritonOps


@pytest.mark.parametrize("shape", [(1, 64), (5, 100), (3, 1024), (2, 2500)])
def test_swiglu(shape, dtype, device, assert_close):
    num_tokens, intermediate = shape
    gate_up = (3 * torch.randn(num_tokens, 2 * intermediate)).to(device, dtype)
    assert_close(TritonOps(1).swiglu(gate_up), TorchOps().swiglu(gate_up.float().cpu()))
