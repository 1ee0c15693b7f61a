"""The attention half of a decoder layer, over a paged cache."""

from dataclasses import dataclass

import torch

from gpu_worker.kernels.heads import AttentionHeads
from gpu_worker.kernels.metadata import AttentionMetadata
from gpu_worker.kernels.ops import KVCache, Normed, Ops
from gpu_worker.layers.linear import Linear


@dataclass(frozen=True, slots=True)
class Attention:
    """Grouped-query attention (Ainslie et al. 2023) with rotary positions; q, k and v from one product.

    qkv: [heads.packed * head_dim, hidden]; o: [hidden, num_heads * head_dim].
    """

    qkv: Linear
    o: Linear
    heads: AttentionHeads
    ops: Ops

    def mixed(
        self, x: Normed, cos_sin: torch.Tensor, kv_cache: KVCache, metadata: AttentionMetadata
    ) -> torch.Tensor:
        """[T, hidden] to [T, num_heads * head_dim]: all but the last product.

        Writes this step's keys and values to `kv_cache`, this layer's.
        """
        return self.ops.attend(self.qkv(x, self.ops), self.heads, cos_sin, kv_cache, metadata)
