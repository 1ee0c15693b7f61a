"""The operations a model is made of besides matrix products, as an interface with two implementations.

`reference.TorchOps` says what each means, in plain PyTorch, and runs anywhere. `triton_ops.TritonOps` is the
same in Triton kernels. A model takes one of them by constructor.
"""

from typing import Protocol

import torch

from gpu_worker.kernels.metadata import AttentionMetadata


class Ops(Protocol):
    """T is num_tokens. Activations may be views whose rows lie further apart; all else is contiguous."""

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """RMSNorm (Zhang and Sennrich 2019) over the last dimension of `x` [T, hidden] or [T, heads, hidden].

        Computed in float32, returned contiguous and in x's dtype.
        """
        ...

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        """`residual += x` in place, then RMSNorm of the sum. Both [T, hidden]."""
        ...

    def swiglu(self, gate_up: torch.Tensor) -> torch.Tensor:
        """silu(gate) * up for `gate_up` [T, 2 * intermediate] (gate first), giving [T, intermediate]."""
        ...

    def rope_and_cache(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cos_sin: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        metadata: AttentionMetadata,
    ) -> None:
        """Rotate q and k in place by their positions (halves convention, as Llama), then cache k and v.

        q [T, num_heads, head_dim]; k, v [T, num_kv_heads, head_dim]: views into one packed projection, so
        their first stride is not num_heads * head_dim. cos_sin [max_positions, head_dim] float32: cosines of
        the first half, then sines. Caches [num_blocks, block_size, num_kv_heads, head_dim].
        """
        ...

    def attention(
        self,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        metadata: AttentionMetadata,
        scale: float,
        window: int | None,
    ) -> torch.Tensor:
        """Causal attention of each sequence over its blocks, giving [T, num_heads * head_dim] in q's dtype.

        q [T, num_heads, head_dim] (strided view), `scale` > 0. With `window`, a query at position p sees keys
        at positions greater than p - window only (sliding window, as Mistral).
        """
        ...
