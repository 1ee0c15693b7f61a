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
from gpu_worker.kernels.metadata import AttentionMetadata
from gpu_worker.kernels.ops import Ops
from gpu_worker.kernels.reference import TorchOps
from gpu_worker.models import load_config
from gpu_worker.models.weights import allocate_weights


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
    pacing.observe(100)
    assert pacing.depth == 2


def test_keys_are_not_split():
    shapes = patched("split-KV", "gpu_worker.kernels.launch_shapes")
    assert shapes.num_segments(8, 32768, shapes.decode_tile(4, 128, 2), 132) == 1


@pytest.mark.parametrize("module", ["gpu_worker.main", "scheduler.main"])
def test_nothing_is_frozen(module, monkeypatch):
    monkeypatch.setattr(gc, "freeze", gc.freeze)
    patched("gc frozen", module).gc.freeze()
    assert gc.get_freeze_count() == 0


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
    built = patched("packed products", "gpu_worker.models.llama")._build_layers(config, weights, TorchOps())
    x = torch.randn(3, config.hidden_size)
    for layer, given in zip(built, weights.layers, strict=True):
        torch.testing.assert_close(layer.attention.qkv(x), given.qkv(x))
        torch.testing.assert_close(layer.mlp.gate_up(x), given.gate_up(x))


def test_operators_of_pytorch_stand_in_for_kernels():
    module = SimpleNamespace(TritonOps=type("TritonOps", (), {}))
    for technique in ("fused norm, SwiGLU", "fused RoPE, KV write"):
        TECHNIQUES[technique].patches["gpu_worker.kernels.triton_ops"](module)
    ops = module.TritonOps()
    assert {name for name in vars(module.TritonOps) if not name.startswith("__")} <= set(dir(Ops))
    x = torch.randn(3, 8)
    torch.testing.assert_close(ops.swiglu(x), TorchOps().swiglu(x))
    results = []
    for one in (ops, TorchOps()):
        torch.manual_seed(0)
        q, k, v = (torch.randn(3, heads, 8) for heads in (4, 2, 2))
        keys, values = torch.zeros(2, 4, 2, 8), torch.zeros(2, 4, 2, 8)
        one.rope_and_cache(q, k, v, torch.rand(16, 8), keys, values, metadata())
        results.append((q, k, keys, values))
    torch.testing.assert_close(*results)


def metadata():
    """Three tokens of one sequence, at positions 5 to 7."""
    return AttentionMetadata(
        query_start=torch.tensor([0, 3], dtype=torch.int32),
        seq_lens=torch.tensor([8], dtype=torch.int32),
        block_tables=torch.tensor([[0, 1]], dtype=torch.int32),
        positions=torch.tensor([5, 6, 7], dtype=torch.int32),
        slots=torch.tensor([5, 6, 7]),
        num_decodes=0,
        max_query_len=3,
        max_seq_len=8,
    )


def test_a_process_patches_itself_and_says_so():
    flags, environ = switched_off("work ahead")
    assert not flags
    code = "from scheduler.pacing import WORK_IN_FLIGHT_US as us; print(us)"
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, env=environment(environ), capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
    assert not_patched("work ahead", done.stderr) == []
    assert not_patched("work ahead", "") == ["scheduler.pacing"]


def test_what_has_a_flag_needs_no_patch():
    assert switched_off("CUDA graphs") == (["--enforce-eager"], {})
