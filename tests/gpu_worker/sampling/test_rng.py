"""The random numbers: SplitMix64's own, uniform, and independent in seed, position and token."""

import numpy as np
import pytest
import torch

from gpu_worker.sampling.rng import gumbel, random_bits, stream_keys, uniform


def keys_of(seeds, positions):
    seeds, positions = np.broadcast_arrays(np.asarray(seeds, np.uint64), np.asarray(positions, np.int64))
    return torch.from_numpy(stream_keys(seeds, positions))


def test_the_numbers_are_splitmix64s():
    # Published with the reference implementation, for the state 1234567.
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert random_bits(torch.tensor([1234567]), 5).numpy().view(np.uint64)[0].tolist() == expected


def test_a_key_is_a_splitmix64_number_of_the_mixed_seed():
    def mix(x):
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        return x ^ x >> 31

    for seed, position in [(0, 0), (1, 5), (2**64 - 1, 131_072), (2**63, 7)]:
        expected = mix((mix(seed) + (position + 1) * 0x9E3779B97F4A7C15) % 2**64)
        assert keys_of([seed], [position]).numpy().view(np.uint64)[0] == expected


@pytest.mark.parametrize(
    ("seeds", "positions"),
    [
        (range(64), 0),
        (0, range(64)),
        # Streams of such seeds would overlap if seeds were not mixed first.
        ([i * 0x9E3779B97F4A7C15 % 2**64 for i in range(64)], 3),
    ],
)
def test_uniform_and_independent(seeds, positions):
    numbers = uniform(keys_of(seeds, positions), 2048).numpy()
    assert numbers.min() > 0
    assert numbers.max() < 1
    counts = np.histogram(numbers, bins=256, range=(0, 1))[0]
    expected = numbers.size / 256
    # Chi-square with 255 degrees of freedom: mean 255, deviation 22.6.
    assert 255 - 6 * 22.6 < ((counts - expected) ** 2 / expected).sum() < 255 + 6 * 22.6
    # Rows against each other, rows against their shifts, and neighbours in a row: deviation 1 / sqrt(2048).
    flat = numbers - 0.5
    correlations = flat @ flat.T / 2048 * 12
    assert np.abs(correlations - np.eye(64)).max() < 0.15
    shifted = (flat[:-1, 1:] * flat[1:, :-1]).sum(1) / 2047 * 12
    neighbours = (flat[:, 1:] * flat[:, :-1]).sum(1) / 2047 * 12
    assert max(np.abs(shifted).max(), np.abs(neighbours).max()) < 0.12
    assert len(np.unique(numbers)) > 0.99 * numbers.size


def test_every_bit_flips_half_the_time_with_the_seed():
    base = random_bits(keys_of([12345], [7]), 512).numpy().view(np.uint64)
    for bit in range(64):
        other = random_bits(keys_of([12345 ^ 1 << bit], [7]), 512).numpy().view(np.uint64)
        flips = np.unpackbits((base ^ other).view(np.uint8)).mean()
        assert 0.48 < flips < 0.52


def test_gumbel_has_its_mean_its_variance_and_its_tail():
    numbers = gumbel(keys_of(range(64), 0), 8192).double()
    assert torch.isfinite(numbers).all()
    assert numbers.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert numbers.var().item() == pytest.approx(np.pi**2 / 6, abs=0.02)
    for threshold in (5.0, 8.0):
        share = (numbers > threshold).double().mean().item()
        deviation = (np.exp(-threshold) / numbers.numel()) ** 0.5
        assert share == pytest.approx(1 - np.exp(-np.exp(-threshold)), abs=5 * deviation)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_gives_the_same_bits():
    keys = keys_of(range(16), range(16))
    torch.testing.assert_close(random_bits(keys.cuda(), 4096).cpu(), random_bits(keys, 4096), rtol=0, atol=0)
    torch.testing.assert_close(uniform(keys.cuda(), 4096).cpu(), uniform(keys, 4096), rtol=0, atol=0)
