"""What makes the service fast, and how each thing is switched off alone.

Add an entry to TECHNIQUES: `flags` for `batchyard serve`, or `patches` where the product has no switch. A
patch is a function that is given a module of the product right after that was loaded, in whichever process
that happens, and before anybody else has imported a name from it.

This is read at the start of every process, so it imports nothing of the product.
"""

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

Patch = Callable[[Any], None]  # takes the module


@dataclass(frozen=True, slots=True)
class Technique:
    """`off` says what runs in its place. `patches` are by the name of the module that they change."""

    off: str
    flags: tuple[str, ...] = ()
    patches: Mapping[str, Patch] = field(default_factory=dict)


def _two_steps(pacing: Any) -> None:
    pacing.MOST_STEPS = 2


def _one_segment(launch_shapes: Any) -> None:
    launch_shapes.MAX_SEGMENTS = 1


def _one_buffer(staging: Any) -> None:
    make = staging.PinnedStager

    def stager_for(device: Any) -> Any:
        return make(device, depth=1) if device.type == "cuda" else staging.HostStager()

    staging.stager_for = stager_for


def _no_freeze(module: ModuleType) -> None:
    gc.freeze = lambda: None


def _separate_products(llama: Any) -> None:
    """q, k, v, gate and up each by a product of their own, put side by side afterwards."""
    import torch

    class Separate:
        def __init__(self, packed: Any, sizes: list[int]) -> None:
            self.weights = packed.weight.split(sizes)
            self.biases = [None] * len(sizes) if packed.bias is None else packed.bias.split(sizes)

        def __call__(self, x: Any, ops: Any) -> Any:
            parts = [ops.linear(x, w, b) for w, b in zip(self.weights, self.biases, strict=True)]
            return torch.cat(parts, dim=-1)

    class SeparateMLP(llama.GatedMLP):  # type: ignore[misc]
        def hidden(self, x: Any) -> Any:
            halves = [self.gate_up.weight.shape[0] // 2] * 2
            gate, up = Separate(self.gate_up, halves)(x, self.ops).float().chunk(2, dim=-1)
            return (torch.nn.functional.silu(gate) * up).to(self.gate_up.weight.dtype)

    build = llama._build_layers

    def build_layers(config: Any, weights: Any, ops: Any) -> Any:
        q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        layers = [replace(layer, qkv=Separate(layer.qkv, [q, kv, kv])) for layer in weights.layers]
        return build(config, replace(weights, layers=tuple(layers)), ops)

    llama._build_layers = build_layers
    llama.GatedMLP = SeparateMLP


def _torch_norm_and_swiglu(triton_ops: Any) -> None:
    """Residual, norm and SwiGLU as PyTorch's own operators."""
    from torch.nn import functional as F

    from gpu_worker.kernels.reference import TorchOps

    reference = TorchOps()
    ops = triton_ops.TritonOps

    def linear_add_norm(
        self: Any, x: Any, weight: Any, bias: Any, residual: Any, norm: Any, eps: float
    ) -> Any:
        product = self.linear(x, weight, bias)
        return triton_ops.Normed(reference.add_rms_norm(product, residual, norm, eps), eps)

    def gated_linear(self: Any, x: Any, weight: Any, bias: Any) -> Any:
        gate, up = self.linear(x, weight, bias).float().chunk(2, dim=-1)
        return (F.silu(gate) * up).to(weight.dtype)

    ops.linear_add_norm, ops.gated_linear = linear_add_norm, gated_linear
    ops.rms_norm = staticmethod(reference.rms_norm)
    ops.add_rms_norm = staticmethod(reference.add_rms_norm)


def _torch_rope(triton_ops: Any) -> None:
    """The rotation as PyTorch's own operators; the kernels then rotate by nothing."""
    import torch

    attend = triton_ops.TritonOps.attend
    still: dict[Any, Any] = {}

    def rotated(self: Any, packed: Any, heads: Any, cos_sin: Any, kv_cache: Any, metadata: Any) -> Any:
        cos, sin = cos_sin[metadata.positions].unsqueeze(1).chunk(2, dim=-1)
        by_head = packed.view(packed.shape[0], heads.packed, heads.head_dim)
        x = by_head[:, : heads.num_heads + heads.num_kv_heads]
        first, second = x.float().chunk(2, dim=-1)
        x.copy_(torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1))
        if cos_sin not in still:
            still[cos_sin] = torch.zeros_like(cos_sin)
            still[cos_sin][:, : heads.head_dim // 2] = 1
        return attend(self, packed, heads, still[cos_sin], kv_cache, metadata)

    triton_ops.TritonOps.attend = rotated


def _library_products(launch_shapes: Any) -> None:
    launch_shapes.MOST_MATMUL_ROWS = 0


def _launch_after_launch(device_traits: Any) -> None:
    device_traits._OVERLAPPING = (1000, 0)


def _no_mixed_graphs(mixed_graphs: Any) -> None:
    mixed_graphs._SIZES = ()


def _torch_sampling(sampler: Any) -> None:
    from gpu_worker.sampling import reference

    sampler.pick_for = lambda device: reference.pick


_TRITON_OPS = "gpu_worker.kernels.triton_ops"

TECHNIQUES: Mapping[str, Technique] = {
    "CUDA graphs": Technique(
        "every kernel launched by itself, inputs built by the host", ("--enforce-eager",)
    ),
    "steps ahead": Technique("a step is sent when the one before is answered", ("--steps-in-flight", "1")),
    "work ahead": Technique(
        "two steps in flight, however short they are", patches={"scheduler.pacing": _two_steps}
    ),
    "split-KV": Technique(
        "one program reads all keys of a sequence and head",
        patches={"gpu_worker.kernels.launch_shapes": _one_segment},
    ),
    "packed products": Technique(
        "q, k, v, gate and up by five products", patches={"gpu_worker.models.llama": _separate_products}
    ),
    "fused norm, SwiGLU": Technique("PyTorch's operators", patches={_TRITON_OPS: _torch_norm_and_swiglu}),
    "fused RoPE, KV write": Technique("PyTorch's operators", patches={_TRITON_OPS: _torch_rope}),
    "products of few rows": Technique(
        "cuBLAS, norm and SwiGLU by kernels of their own",
        patches={"gpu_worker.kernels.launch_shapes": _library_products},
    ),
    "overlapped launches": Technique(
        "a kernel starts when the one ahead has ended",
        patches={"gpu_worker.kernels.device_traits": _launch_after_launch},
    ),
    "graphs of mixed steps": Technique(
        "steps that prefill are launched kernel by kernel",
        patches={"gpu_worker.mixed_graphs": _no_mixed_graphs},
    ),
    "sampling kernel": Technique(
        "PyTorch's argmax and sort", patches={"gpu_worker.sampling.sampler": _torch_sampling}
    ),
    "rotating buffers": Technique(
        "one pinned buffer: each upload waits for the one before",
        patches={"gpu_worker.staging": _one_buffer},
    ),
    "gc frozen": Technique(
        "collections walk over everything",
        patches=dict.fromkeys(("gpu_worker.main", "scheduler.main", "gateway.garbage"), _no_freeze),
    ),
}
