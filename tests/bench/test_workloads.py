"""The requests that load tests send: their documented lengths, and the same ones for the same seed."""

import zlib

import numpy as np
import pytest

from bench.workloads import END_ID, LOWEST_ID, WORKLOADS, arrival_times, make_requests


@pytest.mark.parametrize(
    ("workload", "prompt", "answer"),
    [
        ("decode", 128, 512),
        ("prefill", 8192, 1),
        ("long", 32000, 256),
        ("faq", 2112, 128),
        ("tenants", 2112, 64),
    ],
)
def test_fixed_lengths(workload, prompt, answer):
    for request in make_requests(workload, 3, seed=0):
        assert (len(request.prompt), request.max_tokens) == (prompt, answer)
        assert all(LOWEST_ID <= token < END_ID for token in request.prompt)


def test_mixed_lengths():
    requests = make_requests("mixed", 200, seed=0)
    for lengths in ([len(r.prompt) for r in requests], [r.max_tokens for r in requests]):
        assert min(lengths) >= 100
        assert max(lengths) <= 1024
        assert 500 < sum(lengths) / 200 < 620


def test_chat_lengths_and_sampling():
    requests = make_requests("chat", 2000, seed=0)
    assert 200 < sum(len(r.prompt) for r in requests) / 2000 < 240
    assert 180 < sum(r.max_tokens for r in requests) / 2000 < 215
    assert requests[0].sampling == {"temperature": 0.7, "top_p": 0.95}


def test_system_prompts():
    faq = make_requests("faq", 20, seed=0)
    assert len({tuple(r.prompt[:2048]) for r in faq}) == 1
    tenants = make_requests("tenants", 400, seed=0)
    assert len({tuple(r.prompt[:2048]) for r in tenants}) == 32
    assert len({tuple(r.prompt[2048:]) for r in tenants}) == 400


# Of the first ten requests of seed 0: what published figures were measured with.
CHECKSUMS = {
    "mixed": 0x2EEDC363,
    "decode": 0x17DD1F65,
    "prefill": 0x59BB64C7,
    "long": 0x57881445,
    "chat": 0x89141358,
    "faq": 0x627CD80C,
    "tenants": 0x88328149,
}


@pytest.mark.parametrize("workload", WORKLOADS)
def test_a_seed_means_the_same_requests_for_ever(workload):
    checksum = 0
    for request in make_requests(workload, 10, seed=0):
        checksum = zlib.crc32(np.array([*request.prompt, request.max_tokens], "<i4").tobytes(), checksum)
    assert checksum == CHECKSUMS[workload]


def test_arrivals():
    times = arrival_times(32, 3200, seed=0)
    assert times[0] == 0
    assert times == sorted(times)
    assert 90 < times[-1] < 110
    assert arrival_times(0, 3, seed=0) == [0, 0, 0]


def test_scaling():
    (request,) = make_requests("decode", 1, seed=0)
    small = request.scaled(0.1)
    assert (small.prompt, small.max_tokens) == (request.prompt[:12], 51)
    assert len(request.scaled(1e-9).prompt) == 1
