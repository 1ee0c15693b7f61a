"""`batchyard bench` against the whole chain."""

import json

import pytest

from batchyard import cli


def bench(server, *argv):
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", "--url", server.base_url, *argv])
    return ended.value.code


@pytest.mark.parametrize(
    ("asked", "prompt"),
    [
        (["--concurrency", "4"], 24),
        (["--rate", "50"], 24),
        (["--endpoint", "chat", "--concurrency", "4"], None),
    ],
)
def test_every_token_is_counted(server, tmp_path, asked, prompt):
    sizes = ["--input", "24", "--output", "8", "--requests", "12", "--warmup", "1"]
    assert bench(server, *sizes, *asked, "--goodput", "ttft:60000", "--save", str(tmp_path / "r")) == 0
    saved = json.loads((tmp_path / "r.json").read_text())
    (run,) = saved["runs"]
    summary = run["summary"]
    assert saved["model"] == "demo"
    assert (summary["ok"], summary["short"], summary["uncounted"], summary["good"]) == (12, 0, 0, 1.0)
    assert {request["output_tokens"] for request in run["requests"]} == {8}
    assert prompt is None or {request["input_tokens"] for request in run["requests"]} == {prompt}
    assert summary["output_tok_per_s"] == pytest.approx(96 / summary["seconds"], rel=1e-3)


def test_the_gateways_words_reach_the_user(server, capsys):
    assert bench(server, "--input", "5000", "--requests", "2") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "answered none of 8 requests: 400" in line
    assert "2048" in line


def test_each_turn_holds_those_before_it(server, tmp_path):
    conversation = ["--turns", "3", "--system", "40", "--input", "20", "--output", "8"]
    assert bench(server, *conversation, "--requests", "3", "--save", str(tmp_path / "r")) == 0
    (run,) = json.loads((tmp_path / "r.json").read_text())["runs"]
    lengths = [request["input_tokens"] for request in run["requests"]]
    assert len(lengths) == 9
    assert all(lengths[n] < lengths[n + 1] < lengths[n + 2] for n in (0, 3, 6))
