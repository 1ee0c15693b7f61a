"""The feed-forward half of a decoder layer."""

from dataclasses import dataclass

import torch

from gpu_worker.kernels.ops import Normed, Ops
from gpu_worker.layers.linear import Linear


@dataclass(frozen=True, slots=True)
class GatedMLP:
    """down(silu(gate(x)) * up(x)) (SwiGLU, Shazeer 2020), gate and up in one matrix product.

    gate_up: [2 * intermediate, hidden], gate first; down: [hidden, intermediate].
    """

    gate_up: Linear
    down: Linear
    ops: Ops

    def hidden(self, x: Normed) -> torch.Tensor:
        """[T, hidden] to [T, intermediate]: all but the last product."""
        return self.ops.gated_linear(x, self.gate_up.weight, self.gate_up.bias)
