"""`batchyard bench` as a user runs it, against a scripted server."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from batchyard import cli

SMALL = ("--input", "5", "--output", "3", "--warmup", "1")


@pytest.fixture
def bench(server, capsys, no_settings):
    """Runs it; exit code, output and errors."""

    def run(*argv, url=None):
        with pytest.raises(SystemExit) as ended:
            cli.main(["bench", "--url", url or server.url, *argv])
        captured = capsys.readouterr()
        return ended.value.code, captured.out, captured.err

    return run


def test_a_load_test(bench, server, tmp_path):
    server.set(first_s=0.02, gap_s=0.005)
    code, out, err = bench(
        *SMALL, "--requests", "12", "--goodput", "ttft:5000", "--save", str(tmp_path / "r")
    )
    assert (code, err) == (0, "")
    assert "12 of 12 requests answered" in out
    assert "100.0% within ttft:5000" in out
    assert len(server.bodies) == 13  # and one to warm up, with another prompt
    assert len({tuple(body["prompt"]) for body in server.bodies}) == 13
    saved = json.loads((tmp_path / "r.json").read_text())
    (run,) = saved["runs"]
    assert (saved["model"], saved["workload"]["input"], len(run["requests"])) == ("scripted", "5", 12)
    assert run["summary"]["ttft_ms"]["p50"] > 19
    assert {path.name for path in tmp_path.iterdir()} == {"r.json", "r.html", "r.png", "r-timeline.png"}


def test_a_sweep_over_rates(bench, server):
    code, out, _ = bench(*SMALL, "--rates", "40,80", "--requests", "8")
    assert code == 0
    rows = [line for line in out.splitlines() if line.startswith(("40 a second  ", "80 a second  "))]
    assert len(rows) == 2
    assert "The knee is at" in out
    assert len({tuple(body["prompt"]) for body in server.bodies}) == 17  # no prompt twice


def test_chats_traces_and_datasets_are_sent_as_such(bench, server, tmp_path):
    bench(*SMALL, "--turns", "2", "--requests", "2", "--warmup", "0")
    assert sorted(len(body["messages"]) for body in server.bodies) == [1, 1, 3, 3]
    server.bodies.clear()
    rows = [{"timestamp": 0, "input_length": 600, "output_length": 2, "hash_ids": [4, n]} for n in range(3)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    bench("--trace", str(tmp_path / "t.jsonl"), "--warmup", "0")
    assert len({tuple(body["prompt"][:512]) for body in server.bodies}) == 1
    assert len({tuple(body["prompt"]) for body in server.bodies}) == 3
    server.bodies.clear()
    (tmp_path / "d.jsonl").write_text('{"prompt": "hello", "max_tokens": 2}')
    bench("--dataset", str(tmp_path / "d.jsonl"), "--requests", "2", "--warmup", "0", "--no-ignore-eos")
    assert [(body["prompt"], body["max_tokens"]) for body in server.bodies] == [("hello", 2)] * 2
    assert "ignore_eos" not in server.bodies[0]


@pytest.mark.parametrize(
    ("script", "argv", "words"),
    [
        ({}, ("--model", "scriptd"), "--model scriptd: http.* has scripted; did you mean scripted"),
        ({"models": ("a", "b")}, (), "--model: say which; http.* has a, b"),
        ({"key": "right"}, ("--api-key", "wrong"), "--api-key: .* refuses it .401: no such key"),
        ({"status": 400}, (), "answered none of 8 requests: 400: scripted"),
    ],
)
def test_a_server_that_does_not_fit_is_one_line(bench, server, script, argv, words):
    server.set(**script)
    code, out, err = bench(*argv)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert re.search(words, line)
    assert "wrong" not in line.replace("--api-key", "")


def test_no_server_is_one_line(bench):
    code, _, err = bench(url="http://127.0.0.1:9")
    assert code == 2
    why = "cannot be reached (connection refused): is the server running there?"
    assert err == f"batchyard: --url http://127.0.0.1:9: {why}\n"


def test_a_run_in_which_all_fails_is_an_error(bench, server):
    server.set(status=500)
    code, out, err = bench(*SMALL, "--requests", "3", "--warmup", "0")
    assert code == 2
    assert "3 failed" in out
    assert "answered none of 3 requests: 500: scripted" in err


def test_help_names_the_other_actions(bench, capsys):
    code, out, _ = bench("--help")
    assert code == 0
    assert [word for word in ("compare", "plot", "tune") if f"bench {word}" not in out] == []


def test_ctrl_c_shows_what_there_is(server, tmp_path, no_settings):
    server.set(first_s=0.02)
    command = ["bench", "--url", server.url, *SMALL, "--requests", "3000", "--concurrency", "2"]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "batchyard.cli", *command, "--save", str(tmp_path / "r")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    )

    def interrupt() -> None:
        deadline = time.monotonic() + 30
        while len(server.bodies) < 10 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    out, err = process.communicate(timeout=60)
    thread.join()
    assert (process.returncode, err) == (130, "")
    assert "2 cancelled" in out
    assert "stopped before its end" in out
    assert json.loads((tmp_path / "r.json").read_text())["runs"][0]["stopped"]
