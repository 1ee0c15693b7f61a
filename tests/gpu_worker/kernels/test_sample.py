"""Picking tokens in Triton against the reference in PyTorch."""

# ruff: noqa: N803  # Triton constants are upper case

import itertools

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from gpu_worker.kernels.sample import pick
from gpu_worker.kernels.sample_redraw import top_k_floor
from gpu_worker.kernels.sample_scores import gumbel
from gpu_worker.sampling import reference, rng
from tests.gpu_worker.kernels.conftest import HAS_GPU
from tests.gpu_worker.sampling.helpers import ask

# A segment of the kernel has 2048 tokens.
VOCABS = [5, 300, 1000, 5000]
FILTERS = [
    {"min_p": min_p, "top_k": top_k, "top_p": top_p}
    for min_p, top_k, top_p in itertools.product((0.0, 0.05), (0, 4), (1.0, 0.8))
]
OTHERS = [{"top_k": 1}, {"top_k": 299}, {"top_k": 100_000}, {"top_p": 0.0}, {"top_p": 0.9999}, {"min_p": 1.0}]


def picks_for(params, vocab_size, device="cpu"):
    """Of rows with these parameters, one dict each, which seed themselves."""
    params = [{"seed": seed, **changes} for seed, changes in enumerate(params)]
    picks = ask(params, vocab_size, [1] * len(params), [1] * len(params)).picks
    return None if picks is None else picks.map(lambda array: array.to(device))


def random_logits(num_rows, vocab_size, rounded):
    """With a few forbidden tokens in all rows but the first; with many ties if `rounded`."""
    logits = torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(vocab_size)) * 3
    logits[1:, 1::7] = -torch.inf
    return logits.bfloat16().float() if rounded else logits


def assert_as_reference(logits, params, device):
    table = torch.full((3 * len(params),), -1, dtype=torch.int32, device=device)
    places = torch.arange(len(params), device=device) * 3 + 1
    picked = pick(logits.to(device), picks_for(params, logits.shape[1], device), table, places)
    assert picked.dtype == torch.int64
    assert torch.equal(table[places].long(), picked)
    table[places] = -1
    assert (table == -1).all()
    expected = reference.pick(logits.clone(), picks_for(params, logits.shape[1]))
    assert picked.tolist() == expected.tolist()


@pytest.mark.parametrize("vocab_size", VOCABS)
@pytest.mark.parametrize("rounded", [False, True])
def test_the_tokens_of_the_reference(vocab_size, rounded, device):
    temperatures = itertools.cycle((1.0, 0.6, 1.7))
    params = [{}] + [{"temperature": next(temperatures), **asked} for asked in FILTERS + OTHERS] + [{}]
    assert_as_reference(random_logits(len(params), vocab_size, rounded), params, device)


def test_a_large_vocabulary(device):
    params = [{}] + [
        {"temperature": 0.8, **asked}
        for asked in ({}, {"top_p": 0.2}, {"top_k": 3, "top_p": 0.5, "min_p": 0.01})
    ]
    assert_as_reference(random_logits(len(params), 128_256, rounded=True), params, device)


@pytest.mark.parametrize("logits_dtype", [torch.bfloat16, torch.float16], ids=str)
def test_logits_of_half_the_size(logits_dtype, device):
    params = [{}] + [{"temperature": 0.7, **asked} for asked in FILTERS]
    assert_as_reference(random_logits(len(params), 3000, rounded=False).to(logits_dtype), params, device)


@pytest.mark.parametrize("vocab_size", VOCABS)
def test_random_without_filters(vocab_size, device):
    params = [{}, {"temperature": 0.3}, {"temperature": 2.0}]
    assert_as_reference(random_logits(3, vocab_size, rounded=True), params, device)


@pytest.mark.parametrize("vocab_size", VOCABS)
def test_greedy_alone(vocab_size, device):
    assert_as_reference(random_logits(4, vocab_size, rounded=False), [{}] * 4, device)


def test_greedy_takes_the_lowest_id_of_equals(device):
    logits = torch.zeros(3, 9000)
    logits[1, [700, 701, 4097, 8999]] = 5.0
    logits[2, [4095, 4096]] = 5.0
    logits[0, :9] = -0.0
    assert pick(logits.to(device), None).tolist() == [0, 700, 4095]
    mixed = picks_for([{}, {}, {}, {"temperature": 1.0}], 9000, device)
    assert pick(torch.cat((logits, logits[:1])).to(device), mixed)[:3].tolist() == [0, 700, 4095]


def test_one_token_left(device):
    """By a nucleus of one, by top-k, by min-p, and since all others are forbidden."""
    logits = torch.zeros(4, 1000)
    logits[:3, 777] = 20.0
    logits[3] = -torch.inf
    logits[3, 777] = -4.0
    params = [{"top_p": 0.9}, {"top_k": 1}, {"min_p": 0.5}, {"top_p": 0.5, "min_p": 0.1}]
    picks = picks_for([{"temperature": 1.0, **asked} for asked in params], 1000, device)
    assert pick(logits.to(device), picks).tolist() == [777] * 4


def test_noise_that_is_the_wrong_way_round(device):
    """Each draw gives the next likelier token, as if noise and logits had agreed on it, until draws end."""
    picks = picks_for([{"temperature": 1.0, "top_p": 0.0}], 300, device)
    logits = torch.empty(1, 300)
    logits[0, rng.gumbel(picks.keys.cpu(), 300)[0].argsort(descending=True)] = torch.arange(300) * 1e-5
    assert pick(logits.to(device), picks).tolist() == [logits.argmax()]


@triton.jit
def top_k_floors_kernel(out, logits, leasts, top_ks, VOCAB: tl.constexpr, ALL: tl.constexpr):
    row = tl.program_id(0)
    logits += row * VOCAB
    tokens = tl.arange(0, ALL)
    top = tl.max(tl.load(logits + tokens, mask=tokens < VOCAB, other=float("-inf")), axis=0)
    asked = (tl.load(leasts + row), tl.load(top_ks + row))
    tl.store(out + row, top_k_floor(logits, 1.0, top, asked[0], asked[1], VOCAB))


@pytest.mark.parametrize(
    "values",
    [
        [1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
        [1.0, 3.0, 2.0, 2.0, 2.0, 0.0],
        [0.0, -0.0, 0.0, -0.0, -1.0, -0.0],
        [-5.0, -7.0, -5.5, -1e-30, -90.0, -6.0],
        [1e30, -1e30, 1e-38, -1e-38, 0.0, 3.0],
        [-100.0, 20.0, 20.0 - 2**-19, 20.0 - 2**-18, 100.0 - 2**-17, 100.0],
    ],
    ids=str,
)
def test_top_k_floors(values, device):
    """Ties, signs and extremes; a top-k larger than the row; and a floor of min-p above that of top-k."""
    top_ks = torch.arange(1, 9, dtype=torch.int32).repeat(2)
    leasts = torch.tensor([-torch.inf, 0.5]).clamp(max=max(values)).repeat_interleave(8)
    logits = torch.full((16, 300), -torch.inf)
    logits[:, [0, 1, 127, 128, 200, 299]] = torch.tensor(values)
    floors = torch.empty(16, device=device)
    top_k_floors_kernel[(16,)](floors, *(x.to(device) for x in (logits, leasts, top_ks)), VOCAB=300, ALL=512)
    lowest = logits.topk(8).values.gather(1, top_ks.long().unsqueeze(1) - 1).squeeze(1)
    # Any floor is right that lets in the same tokens.
    expected = logits >= torch.maximum(lowest, leasts).unsqueeze(1)
    assert torch.equal(logits >= floors.cpu().unsqueeze(1), expected)


def test_a_row_without_a_best_token_gets_a_token_all_the_same(device):
    params = [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.5, "top_k": 3, "min_p": 0.1}]
    picked = pick(torch.full((3, 300), -torch.inf, device=device), picks_for(params, 300, device))
    assert all(0 <= token < 300 for token in picked.tolist())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, which interprets
@pytest.mark.parametrize("place", [0, 2999, slice(None)], ids=str)
@pytest.mark.parametrize("negative", [False, True])
def test_a_logit_that_is_no_number_is_told_and_never_looked_up(place, negative, device):
    params = [{}, {"temperature": 1.0}] + [{"temperature": 0.7, **asked} for asked in FILTERS]
    logits = random_logits(2 * len(params), 3000, rounded=False)
    nan = torch.tensor(torch.nan).copysign(torch.tensor(-1.0 if negative else 1.0))
    logits[::2, place] = nan
    for asked in (params, [{}] * len(params)):  # the second: greedy alone
        doubled = [each for each in asked for _ in range(2)]
        table = torch.full((len(doubled),), 7, dtype=torch.int32, device=device)
        places = torch.arange(len(doubled), device=device)
        picked = pick(logits.to(device), picks_for(doubled, 3000, device), table, places)
        expected = reference.pick(logits.clone(), picks_for(doubled, 3000))
        assert picked.tolist() == expected.tolist()
        assert picked[::2].tolist() == [-1] * len(params)
        assert (picked[1::2] >= 0).all()
        assert table.tolist() == picked.clamp(min=0).tolist()


def test_the_rest_of_the_batch_does_not_matter(device):
    params = [{"temperature": 1.0, **asked} for asked in FILTERS]
    logits = random_logits(len(params), 1000, rounded=True).to(device)
    picks = picks_for(params, 1000, device)
    together = pick(logits, picks)
    for row in range(len(params)):
        alone = picks.map(lambda array, row=row: array[row : row + 1].clone())
        assert pick(logits[row : row + 1].clone(), alone) == together[row]


def test_logits_are_left_as_they_are(device):
    logits = random_logits(2, 300, rounded=False).to(device)
    before = logits.clone()
    pick(logits, picks_for([{"temperature": 0.5, "top_p": 0.5}, {}], 300, device))
    assert torch.equal(logits, before)


@pytest.mark.parametrize("asked", [{}, {"top_k": 5, "top_p": 0.9}], ids=str)
def test_frequencies_fit_the_distribution(asked, device):
    draws = 20_000 if HAS_GPU else 60
    logits = torch.tensor([2.0, 1.5, 1.0, 0.5, 0.0, -9.0])
    expected = logits.double().div(0.8).softmax(0).numpy()
    if asked:
        # The fifth is what top-k leaves and top-p does not.
        expected[4:] = 0
        expected /= expected.sum()
    picks = picks_for([{"temperature": 0.8, **asked}] * draws, 6, device)
    tokens = pick(logits.expand(draws, 6).contiguous().to(device), picks)
    counts = np.bincount(tokens.cpu().numpy(), minlength=6)
    assert not counts[expected == 0].any()
    often = expected * draws > 5
    wanted = expected[often] * draws
    statistic = ((counts[often] - wanted) ** 2 / wanted).sum()
    degrees = often.sum() - 1
    assert statistic < degrees + 5 * (2 * degrees) ** 0.5


@triton.jit
def gumbel_kernel(out, keys, SIZE: tl.constexpr):
    row = tl.program_id(0)
    tokens = tl.arange(0, SIZE)
    tl.store(out + row * SIZE + tokens, gumbel(tl.load(keys + row), tokens))


def test_gumbel_numbers_are_those_of_the_reference(device):
    """To the last bits, the largest among them, which stem from numbers near 0, as well as the smallest."""
    size, rows = 1 << 16, 16
    keys = torch.from_numpy(rng.stream_keys(np.arange(rows, dtype=np.uint64), np.arange(rows)))
    ours = torch.empty(rows, size, device=device)
    gumbel_kernel[(rows,)](ours, keys.to(device), SIZE=size)
    theirs = rng.gumbel(keys, size)
    assert theirs.max() > 12
    assert theirs.min() < -2.4
    torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("logits_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("vocab_size", [128_256, 151_936])
def test_large_vocabularies_in_a_graph(vocab_size, logits_dtype):
    """Capture fails if anything waits for the device."""
    params = [{}] + [{"temperature": 0.8, **asked} for asked in FILTERS + OTHERS] * 8
    logits = random_logits(len(params), vocab_size, rounded=True).to(logits_dtype)
    captured = torch.zeros_like(logits, device="cuda")
    picks = picks_for(params, vocab_size, "cuda")
    pick(captured, picks)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tokens = pick(captured, picks)
    captured.copy_(logits)
    graph.replay()
    expected = reference.pick(logits, picks_for(params, vocab_size))
    assert tokens.tolist() == expected.tolist()
