"""The load generator, on a server that answers by the book."""

import asyncio
import json

import pytest
from aiohttp import web

from bench.load import parse, percentiles, plan, report
from bench.load_client import Answer, Call, Share, read_answer, run_share

CALL = Call(at=0.0, body=b"", prompt_len=7, max_tokens=2)


def event(**fields):
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


TOKEN = event(choices=[{"text": "t17"}])
USAGE = event(choices=[], usage={"completion_tokens": 2})
DONE = b"data: [DONE]\n\n"


def answer(*pieces, error=None):
    return Answer(start=10.0, end=20.0, pieces=list(pieces), error=error)


def test_events_have_the_time_of_the_piece_that_completes_them():
    outcome = read_answer(CALL, answer((11.0, TOKEN + TOKEN[:9]), (12.0, TOKEN[9:] + USAGE), (13.0, DONE)))
    assert (outcome.stamps, outcome.end, outcome.tokens, outcome.error) == ([11.0, 12.0], 12.0, 2, None)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (answer((11.0, event(error={"message": "no room"}))), "no room"),
        (answer(error="500: broken"), "500: broken"),
        (answer((11.0, DONE)), "no token"),
    ],
)
def test_failures(given, why):
    assert why in read_answer(CALL, given).error


def test_the_report():
    good = read_answer(CALL, answer((11.0, TOKEN), (13.0, TOKEN + USAGE + DONE)))
    result = report(parse(["--workload", "decode"]), [good, read_answer(CALL, answer(error="gone"))])
    assert (result["requests"], result["failed"], result["errors"]) == (2, 1, ["gone"])
    assert (result["seconds"], result["output_tok_per_s"], result["short_outputs"]) == (3.0, 0.7, 0)
    assert (result["ttft_ms"]["p50"], result["itl_ms"]["p50"], result["tpot_ms"]["p99"]) == (1000, 2000, 2000)


def test_percentiles():
    assert percentiles([n / 1000 for n in range(100)]) == {"mean": 49.5, "p50": 50, "p95": 95, "p99": 99}
    assert percentiles([]) == {}


class Server:
    """Answers each completion with as many events as tokens were asked for, and counts those in flight."""

    def __init__(self):
        self.in_flight = self.most = 0

    async def complete(self, request):
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        body = await request.json()
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(body["max_tokens"]):
            await response.write(TOKEN)
            await asyncio.sleep(0)
        await response.write(event(choices=[], usage={"completion_tokens": body["max_tokens"]}) + DONE)
        self.in_flight -= 1
        return response


@pytest.fixture
async def server():
    server = Server()
    app = web.Application()
    app.router.add_post("/v1/completions", server.complete)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1/completions"
    yield server
    await runner.cleanup()


@pytest.mark.parametrize("concurrency", [0, 3])
async def test_open_and_closed_loop(server, concurrency):
    options = parse(["--workload", "mixed", "--requests", "8", "--scale-tokens", "0.02"])
    outcomes = await run_share(Share(server.url, plan(options), concurrency, timeout=10))
    assert [outcome.error for outcome in outcomes] == [None] * 8
    assert [outcome.tokens for outcome in outcomes] == [outcome.asked for outcome in outcomes]
    assert server.most <= (concurrency or 8)
