"""RMSNorm in Triton against the reference."""

import pytest
import torch

from gpu_worker.kernels.device_traits import DeviceTraits
from gpu_worker.kernels.reference import TorchOps
from gpu_worker.kernels.triton_ops import TritonOps

EPS = 1e-5
# Rows of one program each and shared ones, powers of two and not.
SHAPES = [(1, 64), (7, 100), (3, 1024), (2, 2880)]


def random(*shape, dtype, device):
    return torch.randn(shape).to(device, dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_rms_norm(shape, dtype, device, assert_close):
    x, weight = random(*shape, dtype=dtype, device=device), random(shape[1], dtype=dtype, device=device)
    expected = TorchOps().rms_norm(x.float().cpu(), weight.float().cpu(), EPS)
    assert_close(TritonOps(DeviceTraits(1)).rms_norm(x, weight, EPS), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_add_rms_norm(shape, dtype, device, assert_close):
    x, residual = (random(*shape, dtype=dtype, device=device) for _ in range(2))
    weight = random(shape[1], dtype=dtype, device=device)
    total = residual + x
    expected = TorchOps().rms_norm(total.float().cpu(), weight.float().cpu(), EPS)
    assert_close(TritonOps(DeviceTraits(1)).add_rms_norm(x, residual, weight, EPS), expected)
    assert torch.equal(residual, total)


def test_rows_that_lie_apart(dtype, device, assert_close):
    wide = random(5, 200, dtype=dtype, device=device)
    weight = random(100, dtype=dtype, device=device)
    x, residual = wide[:, :100], random(5, 120, dtype=dtype, device=device)[:, 20:]
    expected = TorchOps().rms_norm((x + residual).float().cpu(), weight.float().cpu(), EPS)
    assert_close(TritonOps(DeviceTraits(1)).add_rms_norm(x, residual, weight, EPS), expected)
