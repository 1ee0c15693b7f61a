"""Switching off: each patch does to the product what it says, which is noticed when names change there."""

import gc
import importlib.util
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from bench.service import environment
from bench.techniques import TECHNIQUES
from bench.without import not_patched, switched_off
from gpu_worker.kernels.ops import Normed, Ops
from gpu_worker.kernels.reference import TorchOps
from gpu_worker.layers.mlp import GatedMLP
from gpu_worker.models import load_config
from gpu_worker.models.weights import allocate_weights
from gpu_worker.sampling import reference


def patched(technique, module):
    """A copy of the module of its own, patched."""
    spec = importlib.util.find_spec(module)
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    TECHNIQUES[technique].patches[module](copy)
    return copy


def test_two_steps_in_flight():
    pacing = patched("work ahead", "scheduler.pacing").Pacing(2)
    assert pacing.depth == 2
    pacing.sent(0, 0.0)
    pacing.answered(100, 0, 0.0001)
    assert pacing.depth == 2


def test_keys_are_not_split():
    shapes = patched("split-KV", "gpu_worker.kernels.launch_shapes")
    assert shapes.num_segments(8, 32768, shapes.decode_tile(4, 128, 2), 132) == 1


@pytest.mark.parametrize("module", ["gpu_worker.main", "scheduler.main", "gateway.garbage"])
def test_nothing_is_frozen(module, monkeypatch):
    monkeypatch.setattr(gc, "freeze", gc.freeze)
    before = gc.get_freeze_count()  # other tests may have frozen something
    patched("gc frozen", module).gc.freeze()
    assert gc.get_freeze_count() == before


def test_one_buffer():
    staging = patched("rotating buffers", "gpu_worker.staging")
    depths = []
    staging.PinnedStager.__init__ = lambda self, device, depth=4: depths.append(depth)
    staging.stager_for(torch.device("cuda"))
    assert depths == [1]
    assert isinstance(staging.stager_for(torch.device("cpu")), staging.HostStager)


def test_separate_products_give_the_same(tiny_llama):
    config = load_config(tiny_llama[0])
    weights = allocate_weights(config, torch.float32, torch.device("cpu"))
    for layer in weights.layers:
        for linear in (layer.qkv, layer.gate_up):
            linear.weight.uniform_(-1, 1)
    ops = TorchOps()
    built = patched("packed products", "gpu_worker.models.llama")._build_layers(config, weights, ops)
    x = torch.randn(3, config.hidden_size)
    for layer, given in zip(built, weights.layers, strict=True):
        torch.testing.assert_close(layer.attention.qkv(x, ops), given.qkv(x, ops))
        torch.testing.assert_close(layer.mlp.hidden(x), GatedMLP(given.gate_up, given.down, ops).hidden(x))


def patched_ops(technique):
    """`TorchOps`, patched as `TritonOps` would be."""
    module = SimpleNamespace(TritonOps=type("TritonOps", (TorchOps,), {}), Normed=Normed)
    TECHNIQUES[technique].patches["gpu_worker.kernels.triton_ops"](module)
    return module.TritonOps()


def test_operators_of_pytorch_stand_in_for_norm_and_swiglu():
    ops, plain = patched_ops("fused norm, SwiGLU"), TorchOps()
    assert {name for name in vars(type(ops)) if not name.startswith("__")} <= set(dir(Ops))
    x, weight = torch.randn(3, 8), torch.randn(12, 8)
    torch.testing.assert_close(ops.gated_linear(x, weight, None), plain.gated_linear(x, weight, None))
    for bias in (None, torch.randn(12)):
        streams = torch.ones(3, 12), torch.ones(3, 12)
        normed = [
            one.linear_add_norm(x, weight, bias, stream, torch.rand(12, generator=torch.manual_seed(0)), 1e-5)
            for one, stream in zip((ops, plain), streams, strict=True)
        ]
        torch.testing.assert_close(*streams)
        torch.testing.assert_close(normed[0].scaled(), normed[1].scaled())


def test_operators_of_pytorch_stand_in_for_the_rotation(make_batch):
    batches = [make_batch([(1, 20), (5, 9)], (4, 2, 16, 8)) for _ in range(2)]
    attended = [
        batch.attend(ops)
        for batch, ops in zip(batches, (patched_ops("fused RoPE, KV write"), TorchOps()), strict=True)
    ]
    torch.testing.assert_close(*attended)
    torch.testing.assert_close(batches[0].k_cache, batches[1].k_cache, equal_nan=True)


def test_what_is_left_to_libraries():
    shapes = patched("products of few rows", "gpu_worker.kernels.launch_shapes")
    assert shapes.matmul_tile(1, 64, 128, gated=False, num_multiprocessors=132) is None
    assert patched("overlapped launches", "gpu_worker.kernels.device_traits")._OVERLAPPING > (99, 0)
    assert patched("graphs of mixed steps", "gpu_worker.mixed_graphs")._SIZES == ()
    assert patched("sampling kernel", "gpu_worker.sampling.sampler").pick_for(None) is reference.pick


def test_a_process_patches_itself_and_says_so():
    flags, environ = switched_off("work ahead")
    assert not flags
    code = "from scheduler.pacing import MOST_STEPS; print(MOST_STEPS)"
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, env=environment(environ), capture_output=True, text=True, check=True)
    assert done.stdout == "2\n"
    assert not_patched("work ahead", done.stderr) == []
    assert not_patched("work ahead", "") == ["scheduler.pacing"]


def test_what_has_a_flag_needs_no_patch():
    assert switched_off("CUDA graphs") == (["--enforce-eager"], {})
