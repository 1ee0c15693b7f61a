"""A request is delayed on purpose at each place, and its trace alone tells which it was."""

import asyncio
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import httpx
import pytest

from batchyard.demo import MODEL_DIR
from batchyard.slowness import Place, SeenSpan, shares, slowest
from batchyard.spans import SpanRecorder
from bench.chaos.slow_redis import SlowRedis
from gateway.keys.records import record_for
from gateway.keys.ring import KeyRing
from gateway.keys.stores import FileKeys
from gateway.limits.limiter import LocalLimiter
from gateway.limits.shared import SharedLimiter
from gateway.request_trace import Traces
from gateway.service import Backend
from gateway.tokenizing import Tokenizer
from tests.end_to_end.chain import chain
from tests.gateway.api_fakes import make_app

SHORT = "def area(radius):"
URGENT = {"priority": -5}


class SlowTokenizer:
    """Takes `seconds` longer."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self.seconds = 0.0

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    async def encode_async(self, text):
        await asyncio.sleep(self.seconds)
        return await self._tokenizer.encode_async(text)


class Site:
    """REST before a real scheduler and a real worker, and the spans of all of them."""

    def __init__(self, asked, tokenizer, spans, limiter, keys):
        self.chain = asked
        self.tokenizer = SlowTokenizer(tokenizer)
        self._spans = spans
        self.app = make_app(
            traces=Traces(SpanRecorder(spans.append)),
            keys=keys,
            limiter=limiter,
            tokenizer=self.tokenizer,
            backend=self._backend,
            describe=asked.link.describe,
        )

    async def _backend(self):
        return Backend(self.chain.generator, self.chain.limits)

    async def ask(self, name, prompt=SHORT, max_tokens=4, key="key", **fields):
        """Its request id is `name`."""
        body = {"model": "demo", "prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True, **fields}
        headers = {"X-Request-Id": name, "Authorization": f"Bearer {key}"}
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway", timeout=60) as client:
            answer = await client.post("/v1/completions", json=body, headers=headers)
        assert answer.status_code == 200

    async def until(self, condition, seconds=30):
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.001)

    @property
    def batcher(self):
        return self.chain.scheduler.lanes[0].batcher

    @property
    def decoding(self):
        return self.batcher and self.batcher.rows.decoding.any()

    async def trace(self, name):
        """The spans of the request `name`, once the worker has told of each of its rows."""
        (root,) = [s for s in self._spans if s.is_server and s.attributes["batchyard.request_id"] == name]

        def told(of):
            ours = [span for span in self._spans if span.context.trace_id == root.context.trace_id]
            return [span for span in ours if of in ("", span.name)]

        await self.until(lambda: len(told("prefill")) == len(told("scheduler.run")))
        return [seen(span) for span in told("")]


def seen(span):
    """As a collector has it."""
    ids = f"{span.context.span_id:016x}", f"{span.parent_id:016x}"
    return SeenSpan(span.name, *ids, span.start_ns, span.end_ns, span.attributes, span.events)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load(MODEL_DIR)


@pytest.fixture
async def keys(tmp_path):
    """Of two tenants; one has limits."""
    store = FileKeys(tmp_path / "keys.json")
    await store.add(record_for("key", datetime.now(UTC), "acme", min_priority=-5))
    await store.add(record_for("limited", datetime.now(UTC), "bee", requests_per_minute=100))
    keys = KeyRing(store)
    await keys.read()
    return keys


@pytest.fixture
def site(tmp_path, tokenizer, keys):
    @asynccontextmanager
    async def opened(limiter=None, **settings):
        spans = []
        async with chain("demo", tmp_path, tokenizer, export=spans.append, **settings) as asked:
            site = Site(asked, tokenizer, spans, limiter or LocalLimiter(), keys)
            await site.ask("first")  # of anything there is a first time, which takes long
            yield site

    return opened


async def check(site, name, place, least_ms):
    trace = await site.trace(name)
    told = slowest(trace)
    assert told.place == place, shares(trace)
    assert told.milliseconds >= least_ms, shares(trace)


async def test_tokenizer(site):
    async with site() as site:
        site.tokenizer.seconds = 0.5
        await site.ask("slow")
        await check(site, "slow", Place.TOKENIZER, 500)


async def test_rate_limit(site, redis_server):
    async with SlowRedis(redis_server.port) as redis:
        limiter = SharedLimiter(redis.url, LocalLimiter())
        running = asyncio.create_task(limiter.run())
        try:
            async with site(limiter) as site:
                redis.delay.seconds = 0.1
                await site.ask("slow", max_tokens=1, key="limited")
                await check(site, "slow", Place.RATE_LIMIT, 190)
        finally:
            running.cancel()
            await asyncio.wait([running])
            await limiter.close()


async def test_queue(site):
    async with site(max_num_seqs=1) as site:
        occupant = asyncio.create_task(site.ask("occupant", max_tokens=1500))
        await site.until(lambda: site.decoding)
        waiting = asyncio.create_task(site.ask("slow", max_tokens=1))
        await site.until(lambda: len(site.chain.scheduler.lanes[0].waiting))
        await asyncio.sleep(0.5)
        occupant.cancel()
        await waiting
        await check(site, "slow", Place.QUEUE, 450)


@pytest.mark.parametrize("key", ["key", "limited"])  # of the same tenant, and of another one
async def test_prefill_behind_a_long_prompt(site, key):
    long = [100 + n % 5000 for n in range(1900)]
    async with site(max_num_batched_tokens=512, calm=0) as site:
        before = asyncio.create_task(site.ask("long", long, 1))
        await site.until(lambda: site.batcher.rows.taken)
        await site.ask("slow", max_tokens=1, key=key)
        await before
        await check(site, "slow", Place.OTHER_PROMPTS, 50)
        # The long one itself had to wait for little.
        await check(site, "long", Place.PREFILL, 50)


async def test_preemption(site):
    async with site(max_num_seqs=1) as site:
        victim = asyncio.create_task(site.ask("slow", max_tokens=20))
        await site.until(lambda: site.decoding)
        await site.ask("urgent", max_tokens=200, **URGENT)
        await victim
        await check(site, "slow", Place.PREEMPTION, 100)


async def test_worker_loss(site):
    async with site() as site:
        going = asyncio.create_task(site.ask("slow", max_tokens=40))
        await site.until(lambda: site.decoding)
        worker = site.chain.worker
        await worker.stop()
        await site.until(lambda: not site.chain.scheduler.lanes[0].connected)
        await asyncio.sleep(0.5)
        await worker.start()
        await going
        await check(site, "slow", Place.WORKER_LOSS, 450)
