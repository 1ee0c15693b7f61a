"""The kernel tables: what is counted, how it is written, and every case run once in Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.kernels.__main__ import TOPICS, parse
from bench.kernels.cases import Bench, Case, Sweep, Topic
from bench.kernels.read_stream import read_stream
from bench.kernels.tables import heading, line, rate, table
from bench.kernels.timing import Limits, measure_limits, time_rival
from bench.kernels.work import (
    LLAMA_8B,
    QWEN3_06B,
    Model,
    decode_bytes,
    gather_bytes,
    norm_bytes,
    prefill_bytes,
    prefill_flop,
    product_bytes,
    rope_bytes,
    sampling_bytes,
    swiglu_bytes,
)
from gpu_worker.kernels.device_traits import DeviceTraits

ROOT = Path(__file__).parents[2]
LIMITS = Limits(read=4.0, copy=3.0, products=800.0)
TINY = Model("tiny", 4, 2, 16, 128, 128, 192, qk_norm=True)
TINY_SWEEP = Sweep(
    decode_rows=(2,),
    contexts=(32, 48),
    chunks=((5, 0), (3, 14)),
    product_rows=(3,),
    rows=(2,),
    tokens=(3,),
    gathered=(20,),
    sampling_rows=(2,),
    rotation=1,
)


def run_once(launches):
    """A timer where there is no GPU."""
    for launch in launches:
        launch()
    return 1.0


def test_bytes_of_attention():
    # Keys and values of a token are 4 KiB in both models; a llama-8b has 6144 outputs packed and 4096 mixed.
    assert LLAMA_8B.token_bytes == QWEN3_06B.token_bytes == 4096
    assert decode_bytes(LLAMA_8B, 32, 2048) == 32 * (2048 * 4096 + 20480)
    assert prefill_bytes(LLAMA_8B, 64, 2048) == 2112 * 4096 + 64 * 20480
    assert gather_bytes(LLAMA_8B, 100) == 2 * 100 * 4096
    # 6144 in, 32 + 8 heads rotated, 8 keys and values cached, 128 angles.
    assert rope_bytes(LLAMA_8B, 10) == 10 * (12288 + 10240 + 4096 + 512)


def test_flop_of_attention():
    """As many as there are pairs of a query and a key that it sees, counted."""
    query, context = 7, 5
    pairs = sum(context + n + 1 for n in range(query))
    assert prefill_flop(TINY, query, context) == 2 * 2 * 4 * 16 * pairs


def test_bytes_of_layers():
    assert product_bytes(8, 6144, 4096) == 2 * (6144 * 4096 + 8 * 4096)
    assert norm_bytes(3, 4096, add=False) == 2 * (3 + 3 + 1) * 4096
    assert norm_bytes(3, 4096, add=True) == 2 * (6 + 6 + 1) * 4096
    assert swiglu_bytes(2, 14336) == 2 * 2 * 3 * 14336
    assert sampling_bytes(2, 128_256) == 2 * 128_256 * 4


def test_rates():
    assert rate(4_500_000, 1.0) == 4.5


def topic(unit="TB/s", rivals=("flash", "cuDNN")):
    return Topic("Title", unit, ("rows", "context"), rivals, lambda bench: iter(()))


def test_a_line_with_rivals():
    case = Case(("32", "384"), 20_000_000, [])
    assert heading(topic()) == [
        "| rows | context | µs | TB/s | of limit | flash | cuDNN | speedup |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    found = line(topic(), case, 10.0, {"flash": 20.0, "cuDNN": 16.0}, LIMITS)
    assert found == "| 32 | 384 | 10.0 | 2.00 | 50% | 1.00 | 1.25 | 1.60 |"


def test_a_line_where_a_rival_or_all_are_missing():
    case = Case(("8192", "0"), 4_000_000_000, [])
    found = line(topic("TFLOP/s"), case, 10.0, {"flash": 8.0, "cuDNN": None}, LIMITS)
    assert found == "| 8192 | 0 | 10.0 | 400 | 50% | 500 | - | 0.80 |"
    found = line(topic("TFLOP/s"), case, 10.0, {}, LIMITS)
    assert found == "| 8192 | 0 | 10.0 | 400 | 50% | - | - | - |"
    found = line(topic(rivals=()), case, 1000.0, {}, LIMITS)
    assert found == "| 8192 | 0 | 1000.0 | 4.00 | 100% |"


def test_a_rival_that_cannot_run_is_left_out(capsys):
    def fails():
        raise RuntimeError("no such kernel")

    assert time_rival(run_once, "cuDNN", [fails]) is None
    assert capsys.readouterr().err == "cuDNN: no such kernel\n"


def test_copies_go_through_the_rotation():
    bench = Bench(TINY, torch.device("cpu"), DeviceTraits(1), Sweep(rotation=1000))
    assert [bench.copies(size) for size in (1, 10, 300, 1000, 5000)] == [128, 100, 4, 2, 2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a smaller model than GPUs' matrix units are for")
# PyTorch says why it has none of the attention kernels that are asked for here.
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", TOPICS)
def test_every_case_runs(name):
    bench = Bench(TINY, torch.device("cpu"), DeviceTraits(1), TINY_SWEEP)
    lines = list(table(TOPICS[name], bench, run_once, LIMITS))
    assert len(lines) > 2
    assert {text.count("|") for text in lines} == {lines[0].count("|")}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a smaller model than GPUs' matrix units are for")
@pytest.mark.parametrize("name", ["gather", "norms", "sampling"])
def test_what_is_compared_gives_the_same(name):
    """Of those that the interpreter gets right: its matrix product of bfloat16 is wrong."""
    bench = Bench(TINY, torch.device("cpu"), DeviceTraits(1), TINY_SWEEP)
    case = next(TOPICS[name].cases(bench))
    for ours, theirs in zip(case.ours, case.rivals["PyTorch"], strict=True):
        torch.testing.assert_close(ours(), theirs())


def test_cases_too_large_are_left_out():
    bench = Bench(TINY, torch.device("cpu"), DeviceTraits(1), Sweep(most_cache=1))
    assert not list(TOPICS["decode"].cases(bench))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the timer is one for CPUs")
def test_limits():
    numbers = torch.ones(5 * 32768)
    assert read_stream(numbers).tolist() == [32768.0] * 5
    limits = measure_limits(run_once, torch.device("cpu"), streamed=4 * 32768, square=64)
    assert limits.read == pytest.approx(4 * 32768 / 1e6)
    assert limits.copy == pytest.approx(2 * limits.read)
    assert limits.of("TB/s") == limits.copy
    assert limits.of("TFLOP/s") == limits.products == pytest.approx(2 * 64**3 / 1e6)


def test_the_command_line(capsys):
    assert parse([]).only == list(TOPICS)
    options = parse(["--only", "decode,norms", "--repeats", "5"])
    assert (options.only, options.repeats) == (["decode", "norms"], 5)
    with pytest.raises(SystemExit):
        parse(["--only", "decode,encode"])
    assert "encode: not among decode, prefill" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse(["--repeats", "0"])


def test_without_a_gpu_it_says_so():
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "bench.kernels"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "no GPU" in done.stderr
