"""Rotary position embedding (Su et al. 2021, RoFormer) and the ways models stretch it to longer contexts.

All arithmetic is in float32, in the order `transformers` does it: checkpoints were trained with those very
angles, and greedy output is compared with it token for token.
"""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Rope:
    """Plain rotation: pair i of a head turns by theta ** (-2i / head_dim) radians per position."""

    theta: float

    def inverse_frequencies(self, head_dim: int) -> torch.Tensor:
        """Radians per position of each pair, [head_dim / 2] float32."""
        return _plain_frequencies(self.theta, head_dim)

    @property
    def attention_factor(self) -> float:
        """What cosines and sines are multiplied by."""
        return 1.0

    def max_context(self, max_position_embeddings: int) -> int:
        """Tokens the model can attend over, given the length its configuration states."""
        return max_position_embeddings


@dataclass(frozen=True, slots=True)
class LinearRope(Rope):
    """Position interpolation (Chen et al. 2023): `factor` positions fit where one did."""

    factor: float

    def inverse_frequencies(self, head_dim: int) -> torch.Tensor:
        return _plain_frequencies(self.theta, head_dim) / self.factor

    def max_context(self, max_position_embeddings: int) -> int:
        return int(max_position_embeddings * self.factor)


@dataclass(frozen=True, slots=True)
class Llama3Rope(Rope):
    """Llama 3.1: slow pairs are interpolated, fast ones left alone, those between blended."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int

    def inverse_frequencies(self, head_dim: int) -> torch.Tensor:
        plain = _plain_frequencies(self.theta, head_dim)
        turns = self.original_max_positions / (2 * math.pi / plain)
        blend = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        blended = (1 - blend) * plain / self.factor + blend * plain
        slow = turns < self.low_freq_factor
        fast = turns > self.high_freq_factor
        return torch.where(slow, plain / self.factor, torch.where(fast, plain, blended))


@dataclass(frozen=True, slots=True)
class YarnRope(Rope):
    """YaRN (Peng et al. 2023): a ramp over the pairs from plain to interpolated, and sharper attention.

    `beta_fast` and `beta_slow` are turns within the original context: pairs that turn more often than the
    first are left alone, less often than the second interpolated. `truncate` rounds the ends of the ramp to
    whole pairs.
    """

    factor: float
    original_max_positions: int
    cos_sin_factor: float
    beta_fast: float
    beta_slow: float
    truncate: bool

    def inverse_frequencies(self, head_dim: int) -> torch.Tensor:
        powers = self.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
        low, high = self._ramp(head_dim)
        pairs = torch.arange(head_dim // 2, dtype=torch.float32)
        plain_share = 1 - ((pairs - low) / (high - low)).clamp(0, 1)
        return (1.0 / (self.factor * powers)) * (1 - plain_share) + (1.0 / powers) * plain_share

    @property
    def attention_factor(self) -> float:
        return self.cos_sin_factor

    def max_context(self, max_position_embeddings: int) -> int:
        # Some configurations state the original length here, some the stretched one.
        return max(max_position_embeddings, int(self.original_max_positions * self.factor))

    def _ramp(self, head_dim: int) -> tuple[float, float]:
        """The pairs at which the ramp begins and ends."""
        low = self._pair_of(self.beta_fast, head_dim)
        high = self._pair_of(self.beta_slow, head_dim)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        return low, high + 0.001 if low == high else high

    def _pair_of(self, turns: float, head_dim: int) -> float:
        """The (fractional) pair that turns `turns` times within the original context."""
        wavelength = self.original_max_positions / (turns * 2 * math.pi)
        return (head_dim * math.log(wavelength)) / (2 * math.log(self.theta))


def yarn_attention_factor(
    factor: float, mscale: float | None = None, mscale_all_dim: float | None = None
) -> float:
    """What YaRN multiplies cosines and sines by where the configuration does not say: 0.1 ln(factor) + 1.

    With both `mscale`s (DeepSeek), the ratio of the two scaled ones.
    """

    def scaled(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    if mscale and mscale_all_dim:
        return scaled(mscale) / scaled(mscale_all_dim)
    return scaled(1.0)


def cos_sin_table(rope: Rope, head_dim: int, max_positions: int, device: torch.device) -> torch.Tensor:
    """[max_positions, head_dim] float32: in row p the cosines of p's angles, then the sines."""
    positions = torch.arange(max_positions, dtype=torch.float32)
    angles = torch.outer(positions, rope.inverse_frequencies(head_dim))
    table = torch.cat((angles.cos(), angles.sin()), dim=-1)
    return table.mul_(rope.attention_factor).to(device)


def _plain_frequencies(theta: float, head_dim: int) -> torch.Tensor:
    # ** on a tensor loses its type on the way to the caller.
    powers: torch.Tensor = theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    return 1.0 / powers
