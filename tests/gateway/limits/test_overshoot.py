"""64 parallel streams on one key of 2,000 tokens a minute: what any 60 seconds of two minutes really had.

Real HTTP servers, OpenAI's client, a stand-in for the model that writes a token per step. The limits' clock,
in Redis too, runs forty times as fast as ours.
"""

import asyncio
import bisect
import random
import time
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime

import openai

from gateway.keys.records import record_for
from gateway.keys.ring import KeyRing
from gateway.keys.stores import FileKeys
from gateway.limits import shared as shared_module
from gateway.limits.limiter import LocalLimiter
from gateway.limits.shared import SharedLimiter
from gateway.types import Piece
from tests.gateway.api_fakes import make_app, on_a_port

LIMIT = 2000  # tokens a minute
STREAMS = 64
FASTER = 40
MINUTE = 60.0
REDIS_CLOCK = shared_module.REDIS_CLOCK + f"now_ms = now_ms * {FASTER}\n"


def now() -> float:
    """Seconds, as the limits see them."""
    return time.monotonic() * FASTER


class Model:
    """Writes a token per request every 10 ms, stops at random, and logs what it computes."""

    def __init__(self) -> None:
        self.log: list[tuple[float, int]] = []

    async def generate(self, request):
        chance = random.Random(request.request_id)
        self.log.append((now(), len(request.prompt_ids)))
        limit = min(request.params.max_tokens, chance.choice([5, 10_000, 10_000, 10_000]))
        for written in range(1, limit + 1):
            await asyncio.sleep(0.01)
            self.log.append((now(), 1))
            yield Piece("x", (written,), finish_reason="length" if written == limit else None)

    def most_in(self, seconds: float) -> int:
        """Tokens in the worst window that is so long."""
        log = sorted(self.log)
        times, sums = [at for at, _ in log], [0]
        for _, count in log:
            sums.append(sums[-1] + count)
        return max(
            sums[bisect.bisect_left(times, at + seconds)] - sums[index] for index, at in enumerate(times)
        )


@asynccontextmanager
async def gateway(model, limiter, ring):
    app = make_app(model, keys=ring, limiter=limiter)
    async with (
        on_a_port(app) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0) as client,
    ):
        yield client


@asynccontextmanager
async def shared(url):
    limiter = SharedLimiter(url, LocalLimiter(2, clock=lambda: int(now() * 1000)), clock=REDIS_CLOCK)
    task = asyncio.create_task(limiter.run())
    yield limiter
    task.cancel()
    await asyncio.wait([task])
    await limiter.close()


async def stream(client, number, end):
    """Asks again and again, and after a refusal when it is told to."""
    chance = random.Random(number)
    while now() < end:
        prompt, max_tokens = "p" * chance.randint(1, 60), chance.randint(1, 120)
        try:
            chunks = await client.completions.create(
                model="demo", prompt=prompt, max_tokens=max_tokens, stream=True
            )
            async for _ in chunks:
                pass
        except openai.RateLimitError as error:
            wait = float(error.response.headers["retry-after"])
            await asyncio.sleep(min(wait, max(0.0, end - now())) / FASTER)


async def test_one_gateway_alone(tmp_path):
    async with AsyncExitStack() as stack:
        await check([LocalLimiter(clock=lambda: int(now() * 1000))], tmp_path, stack)


async def test_two_gateways_over_redis(redis_server, tmp_path, monkeypatch):
    monkeypatch.setattr(shared_module, "LEASE_MS", shared_module.LEASE_MS * FASTER)
    async with AsyncExitStack() as stack:
        limiters = [await stack.enter_async_context(shared(redis_server.url)) for _ in range(2)]
        await check(limiters, tmp_path, stack)


async def check(limiters, folder, stack):
    store = FileKeys(folder / "keys.json")
    await store.add(record_for("secret", datetime(2026, 1, 2, tzinfo=UTC), "k", tokens_per_minute=LIMIT))
    ring = KeyRing(store)
    await ring.read()
    model = Model()
    clients = [await stack.enter_async_context(gateway(model, limiter, ring)) for limiter in limiters]
    end = now() + 2.2 * MINUTE
    await asyncio.gather(*(stream(clients[n % len(clients)], n, end) for n in range(STREAMS)))
    most, total = model.most_in(MINUTE), sum(count for _, count in model.log)
    print(f"{len(limiters)} gateway(s): at most {most} tokens in any 60 s, {total} in all")
    assert most <= LIMIT
    assert total > LIMIT / 2  # a limit, not a wall; how much more depends on how busy this machine is
