"""The table of the service beside vLLM."""

import json
import sys

import pytest

from bench.ablation import table as ablation_table
from bench.figures import ROWS, Load
from bench.measuring import LoadOptions, command, device_shares, run_load, why_unusable
from bench.service import Counters
from bench.serving import Recorder, parse, select, table

DECODE = {"requests": 2, "failed": 0, "short_outputs": 0, "tpot_ms": {"p50": 4.5}}
BY_KEY = {row.key: row for row in ROWS}


def test_a_row():
    report = DECODE | {"device_idle": 0.0123, "device_busy": 0.9}
    *_, line = table(ROWS, {"llama-8b:decode-1": report})
    assert line == "| llama-8b decode-1, TPOT | 4.89 ms | 4.50 ms | 4.10 ms | 1.09 | 1.2% | 90.0% |"


def test_a_row_of_two_figures_and_one_where_more_is_better():
    chat = {"ttft_ms": {"p99": 60.0}, "itl_ms": {"p99": 10.0}}
    reports = {"llama-8b:chat-32": chat, "llama-8b:mixed-256": {"output_tok_per_s": 12065.7}}
    assert list(table(ROWS, reports))[2:] == [
        "| llama-8b mixed-256, out tok/s | 10,055 | 12,066 | 12,000 | 1.20 |  |  |",
        "| llama-8b chat-32, TTFT p99 / ITL p99 | 51.0 / 14.1 ms | 60.0 / 10.0 ms | 45.0 / 12.0 ms "
        "| 0.85 / 1.41 |  |  |",
    ]


def test_doubts_are_told():
    reports = {
        "llama-8b:decode-1": DECODE | {"failed": 1, "errors": ["gone"]},
        "llama-8b:decode-32": {"error": "not done after 5 s"},
    }
    lines = list(table(ROWS, reports))
    assert "4.50 ms (!)" in lines[2]
    assert lines[3] == "| llama-8b decode-32, TPOT | 5.59 ms |  (!) | 4.80 ms |  |  |  |"
    assert lines[-2:] == [
        "llama-8b:decode-1: 1 of 2 requests failed: ['gone']",
        "llama-8b:decode-32: not done after 5 s",
    ]
    assert why_unusable(DECODE) is None
    assert why_unusable(DECODE | {"short_outputs": 2}) == "2 of 2 answers are too short"


def test_selecting():
    assert len({row.key for row in ROWS}) == len(ROWS)
    assert [row.key for row in select(["llama-8b:long"], False)] == ["llama-8b:long"]
    assert {row.model for row in select(["qwen3-0.6b"], False)} == {"qwen3-0.6b"}
    assert all(row.has_goal for row in select([], False))
    assert len(select([], True)) == len(ROWS)
    with pytest.raises(ValueError, match="no row or model nonsense"):
        select(["nonsense"], False)
    assert parse(["--only", "llama-8b", "--", "--gateways", "2"]).serve == ("--gateways", "2")


def test_results_are_kept(tmp_path):
    path = tmp_path / "new" / "results.jsonl"
    recorder = Recorder(path)
    recorder.add("a", {"seconds": 1})
    recorder.add("a", {"seconds": 2})
    assert Recorder(path).newest == {"a": {"key": "a", "seconds": 2}}
    assert len(path.read_text().splitlines()) == 2


def test_a_load_that_hangs_fails_or_answers():
    sleeping = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert run_load(sleeping, timeout=0.5) == {"error": "not done after 0.5 s"}
    failing = [sys.executable, "-c", "raise SystemExit('no such server')"]
    assert run_load(failing, timeout=20) == {"error": "the load generator failed: no such server"}
    printing = [sys.executable, "-c", f"print('hello'); print('{json.dumps(DECODE)}')"]
    assert run_load(printing, timeout=20) == DECODE


def test_the_command_of_a_load():
    line = " ".join(command("http://h", "m", Load("chat", 60, rate=2, seed=3), LoadOptions()))
    assert line.endswith(
        "-m bench.load --url http://h --model m --workload chat --requests 60 --rate 2 --seed 3"
    )


def test_shares_of_the_device():
    before, after = Counters(0, 1.0, 0, 0.5), Counters(9, 10.0, 9, 1.5)
    assert device_shares(before, after, seconds=12.0) == {"device_busy": 0.75, "device_idle": 0.1}
    assert device_shares(before, before, seconds=1.0) == {"device_busy": 0.0}


def test_the_ablation_table():
    rows = [BY_KEY["llama-8b:decode-32"], BY_KEY["llama-8b:mixed-256"]]
    reports = {
        "none | llama-8b:decode-32": DECODE,
        "CUDA graphs | llama-8b:decode-32": DECODE | {"tpot_ms": {"p50": 9.0}},
        "CUDA graphs | llama-8b:mixed-256": {"error": "no service"},
    }
    _, _, nothing, graphs, _, doubt = ablation_table(rows, reports)
    assert nothing == "| none |  | 4.50 ms |  |"
    assert graphs.endswith("| 9.00 ms (0.50) |  |")
    assert doubt == "CUDA graphs, llama-8b:mixed-256: no service"
