"""Keys and their limits as clients meet them: OpenAI's own client, and gRPC."""

import asyncio
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import openai
import pytest
import structlog

from batchyard.errors import Overloaded
from gateway.keys.records import record_for
from gateway.keys.ring import KeyRing
from gateway.keys.stores import FileKeys
from gateway.limits.door import duration
from gateway.limits.limiter import LocalLimiter
from gateway.metrics import Metrics
from gateway.types import Piece
from tests.gateway.api_fakes import FakeGenerator, make_app, on_a_port
from tests.gateway.test_metrics import samples

NOW = datetime(2026, 1, 2, tzinfo=UTC)
PROMPT = "0123456789"  # ten tokens
USER = {"role": "user", "content": "hi"}


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.ms = 0

    def __call__(self) -> int:
        return self.ms


class Site:
    """A server whose one key has limits, and OpenAI's client of it."""

    def __init__(self, client, generator, limiter, clock, metrics) -> None:
        self.client, self.generator, self.limiter, self.clock = client, generator, limiter, clock
        self._metrics = metrics

    def ask(self, max_tokens=4, **changes):
        """A completion of ten tokens and up to four; the raw response, with its headers."""
        body = {"model": "demo", "prompt": PROMPT, "max_tokens": max_tokens} | changes
        return self.client.completions.with_raw_response.create(**body)

    @property
    def ledger(self):
        return self.limiter.ledgers["alice"]

    def count(self, name, labels):
        return samples(self._metrics.exposition().decode()).get((name, labels), 0)


@pytest.fixture
def site(tmp_path):
    @asynccontextmanager
    async def opened(generator=None, gateways=1, **limits):
        store = FileKeys(tmp_path / "keys.json")
        await store.add(record_for("secret", NOW, "alice", **limits))
        ring = KeyRing(store)
        await ring.read()
        generator, clock, metrics = generator or FakeGenerator(), Clock(), Metrics()
        limiter = LocalLimiter(gateways, clock=clock)
        app = make_app(generator, keys=ring, limiter=limiter, metrics=metrics)
        async with (
            on_a_port(app) as url,
            openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0) as client,
        ):
            yield Site(client, generator, limiter, clock, metrics)

    return opened


async def refused(call) -> openai.RateLimitError:
    with pytest.raises(openai.RateLimitError) as caught:
        await call
    return caught.value


async def test_headers_tell_what_is_left(site):
    async with site(requests_per_minute=3, tokens_per_minute=100) as alice:
        headers = (await alice.ask()).headers
        told = {name: value for name, value in headers.items() if name.startswith("x-ratelimit")}
        assert told == {
            "x-ratelimit-limit-requests": "3",
            "x-ratelimit-remaining-requests": "2",
            "x-ratelimit-reset-requests": "1m1s",
            "x-ratelimit-limit-tokens": "100",
            "x-ratelimit-remaining-tokens": "86",
            "x-ratelimit-reset-tokens": "1m10s",  # 14 held: 8.4 s at 100 a minute, and the minute after that
        }
        stream = await alice.ask(stream=True)
        assert stream.headers["x-ratelimit-remaining-requests"] == "1"
        assert [chunk async for chunk in stream.parse()]


async def test_without_limits_there_are_no_headers(site):
    async with site() as alice:
        assert not [name for name in (await alice.ask()).headers if name.startswith("x-ratelimit")]
        assert alice.limiter.ledgers == {}


async def test_requests_per_minute(site):
    async with site(requests_per_minute=2) as alice:
        await alice.ask()
        alice.clock.ms = 500
        await alice.ask()
        alice.clock.ms = 30_000
        error = await refused(alice.ask())
        assert error.response.headers["retry-after"] == "31"
        assert error.response.headers["x-ratelimit-remaining-requests"] == "0"
        assert (error.type, error.code, error.param) == ("requests", "rate_limit_exceeded", None)
        assert error.body["message"] == (
            "Rate limit reached for key 'alice' on requests per min (RPM): Limit 2, Used 2, Requested 1. "
            "Please try again in 31s."
        )
        assert alice.count("batchyard_gateway_rate_limited_total", "requests,alice") == 1
        alice.clock.ms += 31_000
        await alice.ask()


async def test_tokens_per_minute_are_reserved_and_what_is_not_used_comes_back(site):
    async with site(FakeGenerator(hangs_after=2), tokens_per_minute=50) as alice:
        running = asyncio.create_task(alice.ask(max_tokens=30))
        await alice.generator.hanging.wait()
        assert (alice.ledger.held, alice.ledger.running) == (28, 1)  # the prompt and two tokens are used
        error = await refused(alice.ask(max_tokens=1))
        assert error.type == "tokens"
        assert "Limit 50, Used 40, Requested 11" in error.body["message"]
        running.cancel()
        await asyncio.wait([running])
        await alice.generator.closed.wait()
        assert (alice.ledger.held, alice.ledger.running) == (0, 0)
        assert alice.ledger.used == {0: 12}


async def test_an_answer_that_stops_early_gives_its_tokens_back(site):
    async with site(tokens_per_minute=100) as alice:
        for _ in range(5):  # each reserves 40, and uses 14
            await alice.ask(max_tokens=30)
        assert (alice.ledger.used, alice.ledger.held) == ({0: 70}, 0)


async def test_concurrent_requests_count_answers(site):
    async with site(FakeGenerator(hangs_after=1), concurrent_requests=3) as alice:
        running = asyncio.create_task(alice.ask(n=2))
        await alice.generator.hanging.wait()
        error = await refused(alice.ask(n=2))
        assert (error.type, error.response.headers["retry-after"]) == ("requests", "1")
        assert "concurrent requests: Limit 3, Used 2, Requested 2" in error.body["message"]
        running.cancel()
        await asyncio.wait([running])


class OneHangs(FakeGenerator):
    """The first answer has two tokens, the second one has one and does not end."""

    async def _pieces(self, request):
        yield Piece("a", (1,))
        if request.request_id.endswith("-1"):
            self.hanging.set()
            await asyncio.Event().wait()
        yield Piece("b", (2,), finish_reason="stop")


async def test_an_answer_that_ended_holds_nothing_while_another_runs(site):
    async with site(OneHangs(), tokens_per_minute=100) as alice:
        running = asyncio.create_task(alice.ask(n=2, max_tokens=20))
        async with asyncio.timeout(10):
            await alice.generator.hanging.wait()
            while alice.ledger.running > 1:
                await asyncio.sleep(0.005)
        assert (alice.ledger.held, alice.ledger.used) == (19, {0: 13})
        running.cancel()
        await asyncio.wait([running])


async def test_several_prompts_and_answers_are_counted_each(site):
    async with site(tokens_per_minute=100) as alice:
        await alice.ask(prompt=["ab", "c"], n=3, max_tokens=2)
        assert alice.ledger.used == {0: 3 + 6 * 2}
        assert (alice.ledger.held, alice.ledger.running) == (0, 0)


async def test_a_prompt_alone_is_counted(site):
    async with site(tokens_per_minute=100) as alice:
        await alice.ask(max_tokens=0, echo=True)
        assert (alice.ledger.used, alice.ledger.held, alice.ledger.running) == ({0: 10}, 0, 0)


async def test_what_never_ran_costs_no_tokens(site):
    async with site(FakeGenerator(fails_with=Overloaded("full", 9)), tokens_per_minute=100) as alice:
        error = await refused(alice.ask())
        assert error.code == "overloaded"
        assert error.response.headers["x-ratelimit-limit-tokens"] == "100"
        assert (alice.ledger.used, alice.ledger.held, alice.ledger.running) == ({}, 0, 0)


async def test_what_failed_midway_costs_what_it_used(site):
    failing = FakeGenerator(fails_with=Overloaded("full"), fails_after=2)
    async with site(failing, tokens_per_minute=100) as alice:
        await refused(alice.ask())
        assert (alice.ledger.used, alice.ledger.held, alice.ledger.running) == ({0: 12}, 0, 0)


async def test_what_can_never_fit_is_told_at_once(site):
    async with site(tokens_per_minute=20, requests_per_minute=1) as alice:
        with pytest.raises(openai.BadRequestError, match="can never run") as caught:
            await alice.ask(max_tokens=11)
        assert caught.value.code == "tokens_exceed_limit"
        await alice.ask(max_tokens=10)  # the one before did not count


async def test_a_share_is_called_one(site):
    async with site(tokens_per_minute=100, gateways=4) as alice:
        reply = await alice.ask()
        assert reply.headers["x-ratelimit-limit-tokens"] == "100"
        assert reply.headers["x-ratelimit-remaining-tokens"] == "11"
        error = await refused(alice.ask())
        told = "Limit 25 (of 100, which gateways share equally for now), Used 14, Requested 14"
        assert told in error.message


async def test_a_chat_that_does_not_say_gets_what_the_minute_allows(site):
    async with site(tokens_per_minute=100) as alice:
        await alice.client.chat.completions.create(model="demo", messages=[USER])
        (request,) = alice.generator.requests
        assert len(request.prompt_ids) + request.params.max_tokens == 100


async def test_priority_and_timeout_reach_the_generator(site):
    async with site(min_priority=-3, max_timeout=9, weight=2) as alice:
        extra = {"priority": -3, "timeout": 5}
        await alice.client.chat.completions.create(model="demo", messages=[USER], extra_body=extra)
        terms = alice.generator.requests[0].terms
        assert (terms.tenant.name, terms.tenant.weight, terms.priority) == ("alice", 2, -3)
        assert terms.deadline is not None
        for field, value in (("priority", -4), ("timeout", 10), ("priority", 0.5), ("timeout", 0)):
            with pytest.raises(openai.BadRequestError) as caught:
                await alice.ask(extra_body={field: value})
            assert caught.value.param == field


async def test_a_wrong_key(site):
    async with site() as alice, alice.client.with_options(api_key="wrong") as stranger:
        with pytest.raises(openai.AuthenticationError) as caught:
            await stranger.models.list()
        assert caught.value.code == "invalid_api_key"
        assert caught.value.body["type"] == "invalid_request_error"


async def test_the_name_is_told_and_never_the_key(site):
    async with site(tokens_per_minute=100) as alice:
        with structlog.testing.capture_logs() as lines:
            await alice.ask()
        assert [line["tenant"] for line in lines if line["event"] == "request"] == ["alice"]
        assert "secret" not in str(lines)
        assert alice.count("batchyard_gateway_requests_total", "/v1/completions,200,alice") == 1
        assert alice.count("batchyard_gateway_completion_tokens_total", "alice") == 4


@pytest.mark.parametrize(
    ("ms", "told"),
    [(0, "0ms"), (999, "999ms"), (1000, "1s"), (59_001, "1m0s"), (61_000, "1m1s"), (3_600_000, "60m0s")],
)
def test_durations_are_written_as_openai_writes_them(ms, told):
    assert duration(ms) == told
