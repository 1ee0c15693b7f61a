import asyncio

import numpy as np
import pytest

from batchyard.loadtest.calls import Encoder, Job
from batchyard.loadtest.outcomes import Kind
from batchyard.loadtest.runner import Limits, Runner
from batchyard.loadtest.sessions import Session, Turn
from batchyard.loadtest.statistics import Objectives, summarize

ENCODER = Encoder("scripted", pinned=True)
SLACK = 0.25  # seconds that a busy machine may add


def jobs(count, max_tokens=5, times=None):
    return [ENCODER.job(n, Session([1, 2, 3], max_tokens), times[n] if times else None) for n in range(count)]


@pytest.fixture
def runner(client, stop):
    return Runner(client, ENCODER, Limits(), stop)


async def test_latencies_are_those_of_the_script(server, runner):
    server.set(first_s=0.08, gap_s=0.02)
    record = await runner.closed(jobs(6), 1, 6)
    summary = summarize(record.outcomes, Objectives())
    assert summary.ok == 6
    assert 80 <= summary.ttft_ms.p50 < 80 + 1000 * SLACK
    assert 19 <= summary.itl_ms.p50 < 20 + 1000 * SLACK
    assert 19 <= summary.tpot_ms.p50 < 20 + 1000 * SLACK
    assert 159 <= summary.e2e_ms.p50 < 160 + 1000 * SLACK
    # Whatever the machine did meanwhile: it is what the server did, up to what a packet takes.
    waited = [first - at for at, (first, *_) in zip(server.arrivals, server.writes, strict=True)]
    assert np.median(waited) == pytest.approx(summary.ttft_ms.p50 / 1000, abs=0.02)
    gaps = np.concatenate([np.diff(times) for times in server.writes])
    assert np.median(gaps) == pytest.approx(summary.itl_ms.p50 / 1000, abs=0.004)
    assert {(o.input_tokens, o.output_tokens, o.short) for o in record.outcomes} == {(3, 5, False)}


async def test_a_chats_first_token_is_not_its_role(server, runner):
    server.set(first_s=0.08)
    job = ENCODER.job(0, Session([{"role": "user", "content": "hi"}], 5), None)
    (outcome,) = (await runner.closed([job], 1)).outcomes
    assert 0.08 <= outcome.ttft < 0.08 + SLACK
    assert len(outcome.stamps) == 5


async def test_what_is_sent(server, runner):
    encoder = Encoder("scripted", pinned=False, body={"temperature": 0.5, "max_tokens": 9})
    await runner.closed([encoder.job(0, Session([1, 2], 5), None)], 1)
    (body,) = server.bodies
    assert body == {
        "model": "scripted",
        "prompt": [1, 2],
        "max_tokens": 9,
        "temperature": 0.5,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def test_closed_loop_keeps_so_many_at_once(server, runner):
    server.set(first_s=0.03)
    record = await runner.closed(jobs(12, max_tokens=1), 3, 12)
    assert server.most_running == 3
    assert runner.tally.requests == 12
    assert [outcome.number for outcome in record.outcomes] == list(range(12))


async def test_open_loop_does_not_wait_for_answers(server, runner):
    server.set(first_s=0.6)
    times = [n * 0.02 for n in range(20)]
    record = await runner.open(jobs(20, max_tokens=1, times=times))
    assert server.most_running == 20
    assert max(outcome.sent - outcome.due for outcome in record.outcomes) < SLACK
    assert server.arrivals[-1] - server.arrivals[0] == pytest.approx(0.38, abs=SLACK)


async def test_refusals_are_no_errors(server, runner):
    server.set(refusals=2, retry_after="7")
    record = await runner.closed(jobs(3), 1)
    assert [outcome.kind for outcome in record.outcomes] == [Kind.REFUSED, Kind.REFUSED, Kind.OK]
    assert record.outcomes[0].retry_after == 7.0
    assert record.outcomes[0].error == "429: too many"


async def test_a_refused_request_comes_again_when_it_is_told_to(server, client, stop):
    server.set(refusals=2, retry_after="0.1")
    runner = Runner(client, ENCODER, Limits(retries=2), stop)
    (outcome,) = (await runner.closed(jobs(1), 1)).outcomes
    assert (outcome.kind, outcome.refusals, outcome.retry_after) == (Kind.OK, 2, 0.1)
    assert 0.2 <= outcome.ttft < 0.2 + 3 * SLACK  # for the user it has waited since the first time
    assert summarize([outcome], Objectives()).retried == 2


async def test_refused_for_good(server, client, stop):
    server.set(refusals=9, retry_after="0.01")
    runner = Runner(client, ENCODER, Limits(retries=2), stop)
    (outcome,) = (await runner.closed(jobs(1), 1)).outcomes
    assert (outcome.kind, outcome.refusals, len(server.bodies)) == (Kind.REFUSED, 2, 3)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ({"status": 500}, "500: scripted"),
        ({"status": 503}, "503: scripted"),
        ({"break_after": 2}, "closed the connection"),
        ({"error_after": 2}, "out of luck"),
    ],
)
async def test_failures(server, runner, script, words):
    server.set(**script)
    (outcome,) = (await runner.closed(jobs(1), 1)).outcomes
    assert outcome.kind is Kind.FAILED
    assert words in outcome.error


async def test_answers_that_are_too_short_or_uncounted(server, runner):
    server.set(tokens=3, usage=False)
    (outcome,) = (await runner.closed(jobs(1), 1)).outcomes
    assert (outcome.short, outcome.counted, outcome.output_tokens) == (True, False, 3)


async def test_the_queue_header(server, runner):
    server.set(headers={"X-Queue-Time": "12.5"})
    (outcome,) = (await runner.closed(jobs(1), 1)).outcomes
    assert outcome.queue == 0.0125


async def test_conversations_carry_the_servers_answers(server, runner):
    first = [{"role": "user", "content": "one"}]
    job = ENCODER.job(0, Session(first, 2, (Turn("two", 3), Turn("three", 1))), None)
    record = await runner.closed([job], 1)
    assert [outcome.turn for outcome in record.outcomes] == [0, 1, 2]
    assert server.bodies[2]["messages"] == [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "w0 w1 "},
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": "w0 w1 w2 "},
        {"role": "user", "content": "three"},
    ]


async def test_a_conversation_ends_where_it_is_not_answered(server, runner):
    server.set(status=500)
    job = ENCODER.job(0, Session([{"role": "user", "content": "one"}], 2, (Turn("two", 3),)), None)
    assert len((await runner.closed([job], 1)).outcomes) == 1


async def test_time_is_up(server, client, stop):
    server.set(first_s=0.05)
    runner = Runner(client, ENCODER, Limits(seconds=0.12), stop)
    endless = iter(lambda: jobs(1, max_tokens=1)[0], None)
    record = await runner.closed(endless, 1)
    assert 2 <= len(record.outcomes) <= 3
    assert all(outcome.ok for outcome in record.outcomes)
    assert not record.stopped


@pytest.mark.parametrize("loop", ["open", "closed"])
async def test_stopping_cancels_what_is_in_flight_and_keeps_the_rest(server, runner, stop, loop):
    async def end() -> None:
        while len(runner.tally.outcomes) < 2 or runner.tally.running == 0:
            await asyncio.sleep(0.005)
        stop.set()

    server.set(first_s=0.02, gap_s=0.02)
    many: list[Job] = jobs(200, times=[n * 0.01 for n in range(200)] if loop == "open" else None)
    playing = runner.open(many) if loop == "open" else runner.closed(many, 2)
    record, _ = await asyncio.wait_for(asyncio.gather(playing, end()), 10)
    kinds = {outcome.kind for outcome in record.outcomes}
    assert record.stopped
    assert kinds == {Kind.OK, Kind.CANCELLED}
    assert len(record.outcomes) < 200
