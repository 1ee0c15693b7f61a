"""Limits that all gateways keep together, in Redis: one script call for a request's begin, one for its end.

    asks      wait for Redis's answer; those that come meanwhile leave together, in the next round trip
    changes   are gathered per key and go with the next asks, at a request's end, or twice a second

A ledger of this process follows along. When Redis is away, it decides by this process's share of the limits,
knowing what this process used; when Redis is back, it is told what was used meanwhile, and what is held.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from gateway.limits.ledger import Ask, Change, Quota, Standing
from gateway.limits.limiter import LocalLimiter

log = structlog.get_logger()

REDIS_CLOCK = "local t = redis.call('TIME'); local now_ms = t[1] * 1000 + math.floor(t[2] / 1000)\n"
LEASE_MS = 5_000  # for which a gateway that says nothing keeps what it holds
PATIENCE_S = 0.25  # for an answer; after that Redis is away
TELL_EVERY_S = 0.5  # leases are renewed as often, and a Redis that is away is tried as often

_PREFIX = "batchyard:limits:"
_SCRIPT = Path(__file__).with_name("ledger.lua").read_text()


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request that waits to begin."""

    name: str
    quota: Quota
    ask: Ask
    standing: "asyncio.Future[Standing]"


@dataclass(frozen=True, slots=True)
class _Call:
    """One call of the script; `asked` gets its answer."""

    name: str
    change: Change
    asked: _Asked | None = None

    def arguments(self, gateway: str) -> list[str | int]:
        """ARGV, as ledger.lua has it."""
        quota = self.asked.quota if self.asked else Quota()
        limits = [-1 if limit is None else limit for limit in (quota.requests, quota.tokens, quota.running)]
        change = self.change
        asked = (self.asked.ask.tokens, self.asked.ask.running) if self.asked else (-1, 0)
        changes = (change.used, change.held, change.running, change.requests)
        return [gateway, LEASE_MS, *limits, *changes, *asked]


class SharedLimiter:
    """A `Limiter` over Redis. `run` must be running."""

    def __init__(self, url: str, fallback: LocalLimiter, clock: str = REDIS_CLOCK) -> None:
        """`clock` is a line of Lua that defines `now_ms`. Raises ValueError for a URL of another kind."""
        self._redis = Redis.from_url(
            url,
            socket_timeout=PATIENCE_S,
            socket_connect_timeout=PATIENCE_S,
            retry=Retry(NoBackoff(), 0),
            decode_responses=True,
        )
        self._script = clock + _SCRIPT
        self._sha = "0" * 40  # of the script, once it is loaded
        self._local = fallback
        self._asked: list[_Asked] = []
        self._untold: dict[str, Change] = {}
        self._work = asyncio.Event()
        self._me = secrets.token_hex(8)
        self.away = False

    async def ask(self, name: str, quota: Quota, ask: Ask) -> Standing:
        if self.away:
            return self._decide_alone(name, quota, ask)
        asked = _Asked(name, quota, ask, asyncio.get_running_loop().create_future())
        self._asked.append(asked)
        self._work.set()
        try:
            return await asked.standing
        except asyncio.CancelledError:
            # It may have begun just before; then nobody else will tell its end.
            if asked.standing.done() and not asked.standing.cancelled() and asked.standing.result().granted:
                self.tell(name, Change(held=-ask.tokens, running=-ask.running))
            raise

    def tell(self, name: str, change: Change) -> None:
        self._local.tell(name, change)
        self._note(name, change)
        if change.running:  # an end: the client's next request must find the room
            self._work.set()

    async def run(self) -> None:
        """Talks to Redis until cancelled."""
        loop = asyncio.get_running_loop()
        tick = loop.time()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(tick):
                    await self._work.wait()
            self._work.clear()
            due = loop.time() >= tick
            if due:
                tick = loop.time() + TELL_EVERY_S
            if not self.away:
                await self._exchange(everything=due)
            elif due:
                await self._try_again()
            # The Redis client may keep to itself that it was cancelled; whoever waits for our end must not.
            if (task := asyncio.current_task()) and task.cancelling():
                raise asyncio.CancelledError

    async def close(self) -> None:
        """Tells what is untold, if Redis is there, and disconnects. After `run` has ended."""
        if not self.away:
            await self._exchange(everything=True)
        await self._redis.aclose()

    async def _exchange(self, *, everything: bool) -> None:
        """Sends what there is to say and deals out the answers. Without `everything`, mere use can wait."""
        calls = self._take(everything)
        try:
            answers = await self._call(calls)
        except (RedisError, OSError, TimeoutError) as error:
            self._lose(error, calls)
            return
        for call, standing in zip(calls, answers, strict=True):
            if call.asked:
                self._answer(call.asked, standing)

    def _take(self, everything: bool) -> list[_Call]:
        asked, self._asked = self._asked, []
        calls = [_Call(each.name, self._untold.pop(each.name, Change()), each) for each in asked]
        if everything:
            holders = [name for name, ledger in self._local.ledgers.items() if ledger.held or ledger.running]
            names = {*self._untold, *holders} - {each.name for each in asked}
        else:
            names = {name for name, change in self._untold.items() if change.running}
        return calls + [_Call(name, self._untold.pop(name, Change())) for name in names]

    def _answer(self, asked: _Asked, standing: Standing) -> None:
        ask = asked.ask
        if asked.standing.done():  # its client has gone
            if standing.granted:
                self._note(asked.name, Change(held=-ask.tokens, running=-ask.running))
                self._work.set()
            return
        if standing.granted:
            self._local.tell(asked.name, Change(held=ask.tokens, running=ask.running, requests=1))
        asked.standing.set_result(standing)

    async def _call(self, calls: Sequence[_Call]) -> list[Standing]:
        """The script's answers. Raises RedisError, OSError or TimeoutError."""
        if not calls:
            return []
        try:
            return await self._pipeline(calls)
        except NoScriptError:  # which none of them has then run
            self._sha = await self._redis.script_load(self._script)
            return await self._pipeline(calls)

    async def _pipeline(self, calls: Sequence[_Call]) -> list[Standing]:
        async with self._redis.pipeline(transaction=False) as pipe:
            for call in calls:
                pipe.evalsha(self._sha, 1, _PREFIX + call.name, *map(str, call.arguments(self._me)))
            return [_standing(answer) for answer in await pipe.execute()]

    def _lose(self, error: Exception, calls: Sequence[_Call]) -> None:
        """From here on this process decides alone. What Redis may or may not have heard is told again."""
        if not self.away:
            log.warning(
                "Redis is away: limits hold by this gateway's share", error=str(error) or type(error).__name__
            )
        self.away = True
        for call in calls:
            self._note(call.name, call.change)
        waiting, self._asked = self._asked, []
        for asked in (*(call.asked for call in calls if call.asked), *waiting):
            if not asked.standing.done():
                asked.standing.set_result(self._decide_alone(asked.name, asked.quota, asked.ask))

    def _decide_alone(self, name: str, quota: Quota, ask: Ask) -> Standing:
        standing = self._local.decide(name, quota, ask)
        if standing.granted:
            self._note(name, Change(requests=1))
        return standing

    async def _try_again(self) -> None:
        """When Redis answers: what was used meanwhile, and all that is held, under a new name.

        What it has under the old one may be wrong, and ends with its lease.
        """
        try:
            await self._redis.ping()
        except (RedisError, OSError, TimeoutError):
            return
        self._me = secrets.token_hex(8)
        untold, self._untold = self._untold, {}
        calls = []
        for name, ledger in self._local.ledgers.items():
            change = untold.get(name, Change())
            now = Change(change.used, ledger.held, ledger.running, change.requests)
            if now != Change():
                calls.append(_Call(name, now))
        self.away = False  # requests that come while this is under way wait for their turn
        try:
            await self._call(calls)
        except (RedisError, OSError, TimeoutError) as error:
            self._lose(error, calls)
            return
        log.info("Redis is back: limits hold over all gateways")

    def _note(self, name: str, change: Change) -> None:
        self._untold[name] = self._untold.get(name, Change()) + change


def _standing(answer: Sequence[Any]) -> Standing:
    granted, tokens, requests, running, cause, retry_ms, reset_tokens_ms, reset_requests_ms = answer
    return Standing(
        granted=bool(granted),
        tokens=tokens,
        requests=requests,
        running=running,
        cause=cause,
        retry_ms=retry_ms,
        reset_tokens_ms=reset_tokens_ms,
        reset_requests_ms=reset_requests_ms,
    )
