"""The whole of it: `batchyard serve` with the demo model, loaded, watched and tuned."""

import asyncio
import os

import pytest

from batchyard import cli
from batchyard.errors import BadTarget
from batchyard.loadtest import measuring
from batchyard.loadtest.options import parse
from batchyard.loadtest.serving import free_ports_in_a_row, serving
from batchyard.loadtest.usage import family, watched

SERVE = ("--device", "cpu", "--max-model-len", "256")
LOAD = ("--input", "24", "--output", "8", "--concurrency", "4", "--requests", "12", "--warmup", "1")


def alive(pids):
    return [pid for pid in pids if os.path.exists(f"/proc/{pid}")]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch, no_settings):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


async def test_a_real_server_is_loaded_and_watched(stop):
    async with serving(SERVE, workers=1, ready_s=120) as served:
        members = family(served.pid)
        options = parse([*LOAD, "--url", served.url, "--goodput", "ttft:60000"], os.environ)
        async with watched(served) as usage:
            result = await measuring.run(options, stop, printed=False)
    (run,) = result.runs
    summary = run.summary
    assert (result.model, summary.ok, summary.short, summary.uncounted, summary.good) == (
        "demo",
        12,
        0,
        0,
        1.0,
    )
    assert {(o.input_tokens, o.output_tokens) for o in run.outcomes} == {(24, 8)}
    assert summary.output_tok_per_s == pytest.approx(96 / summary.seconds, rel=1e-3)
    assert len(members) >= 4  # serve, gateway, scheduler, worker
    assert 0.2 < usage.rss_gib < 20
    assert 0 < usage.cpu_cores < os.cpu_count() + 1
    assert 0 < usage.worker_busy <= 1
    assert not alive(members)


async def test_a_service_that_cannot_start_says_why():
    with pytest.raises(BadTarget, match="no such folder"):
        async with serving(["--model", "./none"], workers=1, ready_s=60):
            pass


async def test_a_service_that_is_not_wanted_any_more_ends():
    task = asyncio.create_task(serving(SERVE, workers=1, ready_s=60).__aenter__())
    while len(mine := family(os.getpid())) < 2:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not alive(mine[1:])


def test_ports_in_a_row():
    assert 1024 < free_ports_in_a_row(3) < 65534


def test_tune(tmp_path, capsys):
    command = ["bench", "tune", *LOAD, "--max-num-seqs", "4", "--max-num-batched-tokens", "64"]
    command += ["--minutes", "2", "--state", str(tmp_path / "state.jsonl")]

    def run():
        with pytest.raises(SystemExit) as ended:
            cli.main([*command, "--", *SERVE])
        return ended.value.code, capsys.readouterr().out

    code, out = run()
    assert code == 0
    assert "Best: --max-num-batched-tokens 64 --max-num-seqs 4" in out
    again_code, again = run()  # everything is known: no service is started
    assert again_code == 0
    assert "state.jsonl: 1 measured before" in again
    assert again.splitlines()[-3:] == out.splitlines()[-3:]
