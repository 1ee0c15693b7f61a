"""SwiGLU in Triton against the reference."""

import pytest
import torch

from gpu_worker.kernels.device_traits import DeviceTraits
from gpu_worker.kernels.triton_ops import TritonOps


@pytest.mark.parametrize("shape", [(1, 64), (5, 100), (3, 1024), (2, 2500)])
def test_swiglu(shape, dtype, device, assert_close):
    num_tokens, intermediate = shape
    gate_up = (3 * torch.randn(num_tokens, 2 * intermediate)).to(device, dtype)
    out = gate_up.new_empty((num_tokens, intermediate))
    TritonOps(DeviceTraits(1))._swiglu(out, gate_up)
    gate, up = gate_up.float().cpu().chunk(2, dim=-1)
    assert_close(out, torch.nn.functional.silu(gate) * up)
