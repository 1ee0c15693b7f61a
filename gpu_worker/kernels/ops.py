"""The operations a model is made of, as an interface with two implementations.

`reference.TorchOps` says what each means, in plain PyTorch, and runs anywhere. `triton_ops.TritonOps` is the
same in Triton kernels. A model takes one of them by constructor.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from gpu_worker.kernels.heads import AttentionHeads
from gpu_worker.kernels.metadata import AttentionMetadata

# Keys and values of one layer, and those of all layers.
KVCache = tuple[torch.Tensor, torch.Tensor]
KVCaches = Sequence[KVCache]


@dataclass(frozen=True, slots=True)
class Normed:
    """What RMSNorm (Zhang and Sennrich 2019) gives, [T, hidden], perhaps with its last factor left out.

    Where there are `squares` [n, T] float32, each row of `values` is still to be multiplied by
    rsqrt(its sum of squares / hidden + eps); a product of it may do so with its outputs.
    """

    values: torch.Tensor
    eps: float
    squares: torch.Tensor | None = None

    def scaled(self) -> torch.Tensor:
        """The values with all factors."""
        if self.squares is None:
            return self.values
        scales = torch.rsqrt(self.squares.sum(0) / self.values.shape[1] + self.eps)
        return (self.values.float() * scales.unsqueeze(1)).to(self.values.dtype)


def as_normed(x: torch.Tensor | Normed) -> Normed:
    """`x`, or a tensor as one that needs no scale."""
    return x if isinstance(x, Normed) else Normed(x, 0.0)


class Ops(Protocol):
    """T is num_tokens. Activations may be views whose rows lie further apart; all else is contiguous."""

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """RMSNorm over the last dimension of `x` [T, hidden].

        Computed in float32, returned contiguous and in x's dtype.
        """
        ...

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        """`residual += x` in place, then RMSNorm of the sum. Both [T, hidden]."""
        ...

    def linear(
        self, x: torch.Tensor | Normed, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """`x @ weight.T + bias`: x [T, in], weight [out, in], bias [out] or None, giving [T, out]."""
        ...

    def linear_add_norm(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        residual: torch.Tensor,
        norm_weight: torch.Tensor,
        eps: float,
    ) -> Normed:
        """`linear`, added to `residual` [T, out] in place, and RMSNorm of the sum."""
        ...

    def gated_linear(
        self, x: torch.Tensor | Normed, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """silu(gate) * up of `x @ weight.T + bias` (SwiGLU, Shazeer 2020), giving [T, out].

        weight [2 * out, in] and bias [2 * out]: the gates first.
        """
        ...

    def logits(self, x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """`x @ weight.T` in float32, [T, out]; into `out` if given."""
        ...

    def attend(
        self,
        packed: torch.Tensor,
        heads: AttentionHeads,
        cos_sin: torch.Tensor,
        kv_cache: KVCache,
        metadata: AttentionMetadata,
    ) -> torch.Tensor:
        """Causal attention of each sequence over its blocks, giving [T, num_heads * head_dim].

        packed [T, heads.packed * head_dim]: queries, keys and values, which may be overwritten. Queries and
        keys are normed if heads.qk_norm says so and rotated by their positions (halves convention, as Llama);
        keys and values are cached. cos_sin [max_positions, head_dim] float32: cosines of the first half, then
        sines. Caches [num_blocks, block_size, num_kv_heads, head_dim].
        """
        ...
