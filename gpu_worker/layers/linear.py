"""A matrix product with an optional bias."""

from dataclasses import dataclass

import torch
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class Linear:
    """`x @ weight.T + bias`: weight [out_features, in_features], bias [out_features] or None."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[T, in_features] to [T, out_features]."""
        return F.linear(x, self.weight, self.bias)
