"""Products of few rows in Triton against PyTorch."""

import pytest
import torch
from torch.nn import functional as F

from gpu_worker.kernels.device_traits import DeviceTraits
from gpu_worker.kernels.reference import TorchOps
from gpu_worker.kernels.triton_ops import TritonOps
from tests.gpu_worker.kernels.conftest import HAS_GPU, TOLERANCES

DTYPES = [torch.float16] + ([torch.bfloat16] if HAS_GPU else [])
# Outputs and inputs: not split, split in two, in four; and shapes that the kernel leaves to PyTorch.
SHAPES = [(192, 256), (64, 1536), (128, 3072), (72, 256), (128, 200)]


def parts_of(outputs, inputs, rows, dtype, device):
    random = torch.Generator().manual_seed(outputs + inputs + rows)
    x = torch.randn(rows, inputs, generator=random)
    weight = torch.randn(outputs, inputs, generator=random) * inputs**-0.5
    bias = torch.randn(outputs, generator=random)
    return tuple(tensor.to(device, dtype) for tensor in (x, weight, bias))


def check(actual, expected, dtype):
    torch.testing.assert_close(actual.float().cpu(), expected, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])


@pytest.fixture(params=DTYPES, ids=str)
def half(request):
    return request.param


@pytest.mark.parametrize("rows", [1, 7, 16, 17, 32, 33])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear(shape, rows, half, device):
    x, weight, bias = parts_of(*shape, rows, half, device)
    expected = F.linear(*(tensor.float().cpu() for tensor in (x, weight, bias)))
    ops = TritonOps(DeviceTraits(132))
    check(ops.linear(x, weight, bias), expected, half)
    # Once more, without the bias: what counts the slices is 0 again.
    actual = ops.linear(x, weight, None)
    assert actual.dtype == half
    check(actual, expected - bias.float().cpu(), half)


@pytest.mark.parametrize("rows", [1, 20, 40])
@pytest.mark.parametrize("biased", [False, True])
def test_gated_linear(rows, biased, half, device):
    x, weight, bias = parts_of(256, 384, rows, half, device)
    chosen = bias if biased else None
    expected = TorchOps().gated_linear(
        x.float().cpu(), weight.float().cpu(), bias.float().cpu() if biased else None
    )
    actual = TritonOps(DeviceTraits(132)).gated_linear(x, weight, chosen)
    assert actual.dtype == half
    check(actual, expected, half)


@pytest.mark.parametrize("rows", [1, 18, 32, 33])
@pytest.mark.parametrize("next_shape", [(192, 256), (72, 256)], ids=str)
def test_onto_the_residual_stream_and_normed_for_the_next_product(rows, next_shape, half, device):
    """Also where the next product is one for PyTorch."""
    x, weight, bias = parts_of(256, 1536, rows, half, device)
    next_weight = parts_of(*next_shape, 1, half, device)[1]
    residual = torch.randn(rows, 256).to(device, half)
    norm_weight = (torch.rand(256) + 0.5).to(device, half)
    expected_stream = residual.float().cpu()
    expected = TorchOps().linear_add_norm(
        *(t.float().cpu() for t in (x, weight, bias)), expected_stream, norm_weight.float().cpu(), 1e-5
    )
    ops = TritonOps(DeviceTraits(132))
    for _ in range(2):  # what counts the slices is 0 again
        stream = residual.clone()
        normed = ops.linear_add_norm(x, weight, bias, stream, norm_weight, 1e-5)
        check(stream, expected_stream, half)
        check(normed.scaled(), expected.values, half)
    assert (normed.squares is not None) == (rows <= 32)
    check(ops.linear(normed, next_weight, None), expected.values @ next_weight.float().cpu().T, half)


def test_a_normed_gated_product(half, device):
    x, weight, _ = parts_of(256, 1536, 3, half, device)
    gate_up = parts_of(128, 256, 1, half, device)[1]
    stream = torch.randn(3, 256).to(device, half)
    ops = TritonOps(DeviceTraits(132))
    normed = ops.linear_add_norm(x, weight, None, stream, torch.ones_like(stream[0]), 1e-5)
    assert normed.squares is not None
    expected = TorchOps().gated_linear(normed.scaled().float().cpu(), gate_up.float().cpu(), None)
    check(ops.gated_linear(normed, gate_up, None), expected, half)


@pytest.mark.parametrize("rows", [2, 50])
def test_logits_in_float32(rows, half, device):
    x, weight, _ = parts_of(320, 256, rows, half, device)
    expected = F.linear(x.float().cpu(), weight.float().cpu())
    ops = TritonOps(DeviceTraits(132))
    out = torch.full((rows, 320), torch.nan, device=device)
    assert ops.logits(x, weight, out) is out
    check(out, expected, half)
    assert ops.logits(x, weight).dtype == torch.float32
    check(ops.logits(x, weight), expected, half)


def test_rows_that_lie_apart(half, device):
    x, weight, _ = parts_of(64, 256, 6, half, device)
    spread = torch.full((6, 512), torch.nan, dtype=half, device=device)
    spread[:, :256] = x
    ops = TritonOps(DeviceTraits(132))
    assert torch.equal(ops.linear(spread[:, :256], weight, None), ops.linear(x, weight, None))


def test_single_precision_is_left_to_pytorch(device):
    x, weight, bias = parts_of(64, 256, 3, torch.float32, device)
    assert torch.equal(TritonOps(DeviceTraits(132)).linear(x, weight, bias), F.linear(x, weight, bias))
