"""A matrix product with an optional bias."""

from dataclasses import dataclass

import torch

from gpu_worker.kernels.ops import Normed, Ops


@dataclass(frozen=True, slots=True)
class Norm:
    """RMSNorm: weight [hidden]."""

    weight: torch.Tensor
    eps: float


@dataclass(frozen=True, slots=True)
class Linear:
    """`x @ weight.T + bias`: weight [out_features, in_features], bias [out_features] or None."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __call__(self, x: torch.Tensor | Normed, ops: Ops) -> torch.Tensor:
        """[T, in_features] to [T, out_features]."""
        return ops.linear(x, self.weight, self.bias)

    def add_norm(self, x: torch.Tensor, residual: torch.Tensor, norm: Norm, ops: Ops) -> Normed:
        """Adds the product to `residual` [T, out_features] in place, and norms the sum."""
        return ops.linear_add_norm(x, self.weight, self.bias, residual, norm.weight, norm.eps)
