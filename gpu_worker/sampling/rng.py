"""Random numbers as a pure function of (seed, position, token id): no generator, no state.

The numbers are those of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number
generators"). Each (seed, position) starts a stream of its own, and token id i takes the stream's number i.
All of it is integer arithmetic modulo 2^64, so every device gives the same bits.
"""

import numpy as np
import numpy.typing as npt
import torch

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
# The largest float32 below 1: a uniform number that rounds up to 1 would have no Gumbel value.
_BELOW_ONE = 1 - 2**-24


def stream_keys(seeds: npt.NDArray[np.uint64], positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Where each row's stream starts, [n] int64: of its seed and the position it samples for, both [n].

    The seed is mixed before the position is added: otherwise seeds that differ by a multiple of the stream's
    increment would share their numbers, a few positions apart.
    """
    # Array arithmetic wraps around silently, as it must here.
    starts = _mix_host(seeds) + (positions.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN)
    return _mix_host(starts).view(np.int64)


def _mix_host(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_MIX_1)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_MIX_2)
    return x ^ (x >> np.uint64(31))


def random_bits(keys: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """64 random bits for each of `keys` [n] int64 and each token id: [n, vocab_size] int64."""
    ids = torch.arange(1, vocab_size + 1, dtype=torch.int64, device=keys.device)
    x = keys.unsqueeze(1) + ids.mul_(_signed(_GOLDEN))
    shifted = torch.empty_like(x)
    _xor_shift(x, 30, shifted)
    x.mul_(_signed(_MIX_1))
    _xor_shift(x, 27, shifted)
    x.mul_(_signed(_MIX_2))
    _xor_shift(x, 31, shifted)
    return x


def _xor_shift(x: torch.Tensor, bits: int, scratch: torch.Tensor) -> None:
    """x ^= x >> bits, in place. torch shifts in copies of the sign, which the mask takes out."""
    torch.bitwise_right_shift(x, bits, out=scratch)
    x.bitwise_xor_(scratch.bitwise_and_((1 << (64 - bits)) - 1))


def _signed(value: int) -> int:
    """The int64 with the bits of a u64."""
    return value - (1 << 64) if value >= 1 << 63 else value


def uniform(keys: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Uniform numbers in (0, 1), [n, vocab_size] float32; as small as 2^-32, for the sake of the tail."""
    bits = random_bits(keys, vocab_size).bitwise_and_(0x7FFFFFFF)
    return bits.to(torch.float32).add_(0.5).mul_(2**-31).clamp_(max=_BELOW_ONE)


def gumbel(keys: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Standard Gumbel numbers, [n, vocab_size] float32: argmax(logits + gumbel) samples softmax(logits)."""
    # log1p keeps what is near 0 exact, and that is what makes an unlikely token win.
    return uniform(keys, vocab_size).neg_().log1p_().neg_().log_().neg_()
