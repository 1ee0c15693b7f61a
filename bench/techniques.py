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
    pacing.WORK_IN_FLIGHT_US = 1


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
    from torch.nn import functional as F

    class Separate:
        def __init__(self, packed: Any, sizes: list[int]) -> None:
            self.weights = packed.weight.split(sizes)
            self.biases = [None] * len(sizes) if packed.bias is None else packed.bias.split(sizes)

        def __call__(self, x: Any) -> Any:
            parts = [F.linear(x, w, b) for w, b in zip(self.weights, self.biases, strict=True)]
            return torch.cat(parts, dim=-1)

    build = llama._build_layers

    def build_layers(config: Any, weights: Any, ops: Any) -> Any:
        q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        layers = [
            replace(
                layer,
                qkv=Separate(layer.qkv, [q, kv, kv]),
                gate_up=Separate(layer.gate_up, [layer.gate_up.weight.shape[0] // 2] * 2),
            )
            for layer in weights.layers
        ]
        return build(config, replace(weights, layers=tuple(layers)), ops)

    llama._build_layers = build_layers


def _torch_norm_and_swiglu(triton_ops: Any) -> None:
    """Residual, norm and SwiGLU as PyTorch's own operators."""
    from gpu_worker.kernels.reference import TorchOps

    reference = TorchOps()
    for name in ("rms_norm", "add_rms_norm", "swiglu"):
        setattr(triton_ops.TritonOps, name, staticmethod(getattr(reference, name)))


def _torch_rope(triton_ops: Any) -> None:
    """Rotation and the writes of keys and values as PyTorch's own operators."""

    def rotate(x: Any, cos: Any, sin: Any) -> None:
        first, second = x.float().chunk(2, dim=-1)
        rotated = first * cos - second * sin, second * cos + first * sin
        for half, value in zip(x.chunk(2, dim=-1), rotated, strict=True):
            half.copy_(value)

    def rope_and_cache(q: Any, k: Any, v: Any, cos_sin: Any, keys: Any, values: Any, metadata: Any) -> None:
        cos, sin = cos_sin[metadata.positions].unsqueeze(1).chunk(2, dim=-1)
        rotate(q, cos, sin)
        rotate(k, cos, sin)
        # Padding has no slot. It goes to block 0, whose contents then mean nothing: dummy weights' never did.
        slots = metadata.slots.clamp(min=0).long()
        keys.view(-1, *k.shape[1:]).index_copy_(0, slots, k)
        values.view(-1, *v.shape[1:]).index_copy_(0, slots, v)

    triton_ops.TritonOps.rope_and_cache = staticmethod(rope_and_cache)


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
    "rotating buffers": Technique(
        "one pinned buffer: each upload waits for the one before",
        patches={"gpu_worker.staging": _one_buffer},
    ),
    "gc frozen": Technique(
        "collections walk over everything",
        patches={"gpu_worker.main": _no_freeze, "scheduler.main": _no_freeze},
    ),
}
