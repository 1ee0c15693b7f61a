"""What attention has to know of a layer, the same in every step."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class QKNorm:
    """RMSNorm of every query and key head before they are rotated (Qwen3). Weights [head_dim]."""

    q_weight: torch.Tensor
    k_weight: torch.Tensor
    eps: float


@dataclass(frozen=True, slots=True)
class AttentionHeads:
    """The heads of a layer as its projection packs them: queries, then keys, then values.

    `window` is the sliding window in tokens: a query at position p sees keys at positions greater than
    p - window only (as Mistral); None to attend to everything.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int | None
    qk_norm: QKNorm | None

    @property
    def group(self) -> int:
        """Query heads that share a KV head (Ainslie et al. 2023)."""
        return self.num_heads // self.num_kv_heads

    @property
    def packed(self) -> int:
        """Heads of all three kinds."""
        return self.num_heads + 2 * self.num_kv_heads

    @property
    def scale(self) -> float:
        """What scores are multiplied by."""
        return float(self.head_dim**-0.5)
