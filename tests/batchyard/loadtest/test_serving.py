"""`batchyard serve` with the demo model, started, tuned and ended."""

import asyncio
import json
import os

import pytest

from batchyard import cli
from batchyard.errors import BadTarget
from batchyard.loadtest.serving import free_ports_in_a_row, serving
from batchyard.loadtest.usage import family

SERVE = ("--device", "cpu", "--max-model-len", "256")
LOAD = ("--input", "24", "--output", "8", "--concurrency", "4", "--requests", "12", "--warmup", "1")


def ours():
    """The processes that come from this one; other tests may have theirs."""
    return set(family(os.getpid()))


@pytest.fixture(autouse=True)
def one_thread(monkeypatch, no_settings):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


async def test_a_service_that_cannot_start_says_why():
    with pytest.raises(BadTarget, match="no such folder"):
        async with serving(["--model", "./none"], workers=1, ready_s=60):
            pass


async def test_a_service_that_is_not_wanted_any_more_ends():
    before = ours()
    task = asyncio.create_task(serving(SERVE, workers=1, ready_s=60).__aenter__())
    while ours() == before:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ours() == before


def test_ports_in_a_row():
    assert 1024 < free_ports_in_a_row(3) < 65534


def test_tune(tmp_path, capsys):
    state, before = tmp_path / "state.jsonl", ours()
    command = ["bench", "tune", *LOAD, "--max-num-seqs", "4", "--max-num-batched-tokens", "64"]
    command += ["--minutes", "2", "--state", str(state)]

    def run():
        with pytest.raises(SystemExit) as ended:
            cli.main([*command, "--", *SERVE])
        return ended.value.code, capsys.readouterr().out

    code, out = run()
    assert code == 0
    assert "Best: --max-num-batched-tokens 64 --max-num-seqs 4" in out
    assert ours() == before
    (trial,) = [json.loads(line)["trial"] for line in state.read_text().splitlines()]
    assert (trial["lost"], trial["error"]) == (0, None)
    assert trial["output_tok_per_s"] == pytest.approx(8 * trial["req_per_s"], rel=1e-2)
    usage = trial["usage"]
    assert 0.2 < usage["rss_gib"] < 20
    assert 0 < usage["cpu_cores"] < os.cpu_count() + 1
    assert 0 < usage["worker_busy"] <= 1
    again_code, again = run()  # everything is known: no service is started
    assert again_code == 0
    assert "state.jsonl: 1 measured before" in again
    assert again.splitlines()[-3:] == out.splitlines()[-3:]
