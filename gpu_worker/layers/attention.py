"""The attention half of a decoder layer, over a paged cache."""

from dataclasses import dataclass

import torch

from gpu_worker.kernels.metadata import AttentionMetadata
from gpu_worker.kernels.ops import Ops
from gpu_worker.layers.linear import Linear


@dataclass(frozen=True, slots=True)
class QKNorm:
    """RMSNorm of every query and key head before they are rotated (Qwen3). Weights [head_dim]."""

    q_weight: torch.Tensor
    k_weight: torch.Tensor
    eps: float

    def __call__(self, q: torch.Tensor, k: torch.Tensor, ops: Ops) -> tuple[torch.Tensor, torch.Tensor]:
        """q [T, num_heads, head_dim], k [T, num_kv_heads, head_dim]; returns new ones, contiguous."""
        return ops.rms_norm(q, self.q_weight, self.eps), ops.rms_norm(k, self.k_weight, self.eps)


@dataclass(frozen=True, slots=True)
class Attention:
    """Grouped-query attention (Ainslie et al. 2023) with rotary positions; q, k and v from one product.

    qkv: [(num_heads + 2 * num_kv_heads) * head_dim, hidden]; o: [hidden, num_heads * head_dim].
    `window` is the sliding window in tokens, None to attend to everything.
    """

    qkv: Linear
    o: Linear
    qk_norm: QKNorm | None
    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int | None
    ops: Ops

    def __call__(
        self,
        x: torch.Tensor,
        cos_sin: torch.Tensor,
        kv_cache: tuple[torch.Tensor, torch.Tensor],
        metadata: AttentionMetadata,
    ) -> torch.Tensor:
        """[T, hidden] to [T, hidden]; writes this step's keys and values to `kv_cache`, this layer's."""
        heads = self.qkv(x).view(x.shape[0], -1, self.head_dim)
        q, k, v = torch.split(heads, [self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=1)
        if self.qk_norm is not None:
            q, k = self.qk_norm(q, k, self.ops)
        k_cache, v_cache = kv_cache
        self.ops.rope_and_cache(q, k, v, cos_sin, k_cache, v_cache, metadata)
        mixed = self.ops.attention(q, k_cache, v_cache, metadata, self.head_dim**-0.5, self.window)
        return self.o(mixed)
