"""The floors that the kernel finds let in the tokens that the filters in PyTorch do."""

# ruff: noqa: N803  # Triton constants are upper case

import pytest
import torch
import triton
import triton.language as tl

from gpu_worker.kernels.sample_floor import CHUNK, find_floor
from gpu_worker.sampling.filters import filter_logits
from tests.gpu_worker.sampling.helpers import ask

FILTERS = [
    {"min_p": 0.1},
    {"top_k": 1},
    {"top_k": 3},
    {"top_k": 9},
    {"top_k": 600},
    {"top_k": 10_000},
    {"top_p": 0.0},
    {"top_p": 0.2},
    {"top_p": 0.95},
    {"min_p": 0.01, "top_p": 0.7},
    {"min_p": 0.02, "top_k": 5},
    {"min_p": 0.3, "top_k": 500},
    {"top_k": 20, "top_p": 0.6},
    {"min_p": 0.003, "top_k": 40, "top_p": 0.9},
]


@triton.jit
def floors_kernel(
    out,
    listed,
    logits,
    temperatures,
    log_min_ps,
    top_ks,
    top_ps,
    VOCAB: tl.constexpr,
    CHUNKS: tl.constexpr,
    ALL_CHUNKS: tl.constexpr,
):
    row = tl.program_id(0)
    logits += row * VOCAB
    temperature = tl.load(temperatures + row)
    tokens = tl.arange(0, ALL_CHUNKS)[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :]
    x = tl.div_rn(tl.load(logits + tokens, mask=tokens < VOCAB, other=float("-inf")), temperature)
    peak = tl.max(x, axis=1)
    top = tl.max(peak, axis=0)
    mass = tl.sum(tl.sum(tl.exp(x - top), axis=1), axis=0)
    its = (logits, temperature, listed + row * CHUNKS, peak, top)
    asked = (tl.load(log_min_ps + row), tl.load(top_ks + row), tl.load(top_ps + row))
    tl.store(out + row, find_floor(its, mass, asked[0], asked[1], asked[2], VOCAB, CHUNKS))


def assert_same_tokens(logits, params, device):
    n, vocab_size = logits.shape
    picks = ask(params, vocab_size, [1] * n, [1] * n).picks
    x = logits / picks.temperature.unsqueeze(1)
    chunks = triton.cdiv(vocab_size, CHUNK.value)
    floors = torch.empty(n, device=device)
    listed = torch.empty(n, chunks, dtype=torch.int32, device=device)
    asked = (picks.temperature, picks.log_min_p, picks.top_k, picks.top_p)
    floors_kernel[(n,)](
        floors,
        listed,
        logits.to(device),
        *(array.to(device) for array in asked),
        VOCAB=vocab_size,
        CHUNKS=chunks,
        ALL_CHUNKS=triton.next_power_of_2(chunks),
    )
    expected = filter_logits(x.clone(), picks) > -torch.inf
    found = (x >= floors.cpu().unsqueeze(1)) & (x > -torch.inf)
    for row in range(n):
        assert torch.equal(found[row], expected[row]), params[row]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.9])
@pytest.mark.parametrize("vocab_size", [50, 600, 1100])
def test_random_logits(vocab_size, temperature, device):
    torch.manual_seed(vocab_size)
    logits = torch.randn(len(FILTERS), vocab_size) * 2
    logits[::2] = logits[::2].bfloat16().float()  # many ties
    logits[:, 3::5] = -torch.inf
    assert_same_tokens(logits, [{"temperature": temperature, **asked} for asked in FILTERS], device)


@pytest.mark.parametrize(
    "values",
    [
        [1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
        [1.0, 3.0, 2.0, 2.0, 2.0, 0.0],
        [0.0, -0.0, 0.0, -0.0, -1.0, -0.0],
        [-5.0, -7.0, -5.5, -1e-30, -90.0, -6.0],
        [1e30, -1e30, 1e-40, -1e-40, 0.0, 3.0],
        [-100.0, 20.0, 20.0 - 2**-19, 20.0 - 2**-18, 100.0 - 2**-17, 100.0],
    ],
    ids=str,
)
def test_ties_signs_and_extremes(values, device):
    params = [{"top_k": k} for k in range(1, 7)] + [{"top_p": 0.01 + p / 7} for p in range(7)]
    params = [{"temperature": 1.0, **asked} for asked in params]
    logits = torch.full((len(params), 300), -torch.inf)
    # In several chunks.
    logits[:, [0, 1, 127, 128, 200, 299]] = torch.tensor(values)
    assert_same_tokens(logits, params, device)
