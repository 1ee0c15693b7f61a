"""The lease of several schedulers, kept in Redis.

held      renewed at a third of its time
lost      Redis says that another scheduler holds it
Redis is  who is active works on, for nobody else can get the lease; a standby becomes active when
away      workers can be reached and nobody steps them
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import cast

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from batchyard.errors import WorkerLost
from scheduler.lease import Lease, clock_fence
from scheduler.transport import Transport

log = structlog.get_logger()

KEY = "batchyard:lease:1"
_SCRIPT = Path(__file__).with_name("lease.lua").read_text()
_RELEASE = (
    "if redis.call('HGET', KEYS[1], 'holder') == ARGV[1] then redis.call('HSET', KEYS[1], 'until', 0) end"
)
_PATIENCE_S = 1.0  # for an answer, at least
_MOST = 5.0  # times as long is the lease at most when Redis is slow
_ASK_S = 0.5  # for a worker to say whether it is stepped


class RedisLease:
    """Keeps a `Lease` for one of several schedulers."""

    def __init__(self, url: str, ttl_s: float, unattended: Callable[[], Awaitable[bool]]) -> None:
        """`ttl_s`: after so many seconds without word from its holder the lease is free. `unattended` says
        whether the workers have no scheduler, as far as they can tell. Raises ValueError for another URL.
        """
        self._redis = Redis.from_url(
            url,
            socket_timeout=max(_PATIENCE_S, ttl_s),
            socket_connect_timeout=max(_PATIENCE_S, ttl_s),
            retry=Retry(NoBackoff(), 0),
            decode_responses=True,
        )
        self._take = self._redis.register_script(_SCRIPT)
        self._release = self._redis.register_script(_RELEASE)
        self._name = secrets.token_hex(8)
        self._ttl_s = ttl_s
        self._unattended = unattended
        self._round_trip_s = 0.0
        self._away_since: float | None = None

    async def keep(self, lease: Lease) -> None:
        """Takes the lease when it is free and renews it. Runs until cancelled."""
        beyond = 0
        while True:
            asked = _now()
            try:
                fence, busy_s = await self._ask(lease.fence, beyond)
            except (RedisError, OSError, TimeoutError) as error:
                await self._do_without(lease, beyond, error)
                wait = self._ttl_s / 3
            else:
                self._is_back()
                if fence:
                    lease.hold(fence)
                else:
                    lease.drop("another scheduler holds it")
                wait = self._ttl_s / 3 if fence else min(busy_s, self._ttl_s / 3)
            # The Redis client may keep to itself that it was cancelled.
            if (task := asyncio.current_task()) and task.cancelling():
                raise asyncio.CancelledError
            beyond = await lease.challenged(max(0.0, asked + wait - _now()))

    async def release(self) -> None:
        """Lets another scheduler have the lease at once, if it was ours and Redis can be told."""
        try:
            await self._release(keys=[KEY], args=[self._name])
        except (RedisError, OSError, TimeoutError) as error:
            log.warning("lease_not_released", error=str(error) or type(error).__name__)

    async def close(self) -> None:
        """Disconnects."""
        await self._redis.aclose()

    async def _ask(self, fence: int, beyond: int) -> tuple[int, float]:
        """The fence under which the lease is ours now, or 0; and for how many seconds it is another's."""
        asked = _now()
        # A slow Redis is no reason to change places. An answer may also be late because we were stopped.
        ttl_s = max(self._ttl_s, min(3 * self._round_trip_s, _MOST * self._ttl_s))
        arguments: list[str | int] = [self._name, round(ttl_s * 1e6), fence, beyond]
        taken, busy_us = cast(list[int], await self._take(keys=[KEY], args=arguments))
        self._round_trip_s = _now() - asked
        return taken, busy_us / 1e6

    async def _do_without(self, lease: Lease, beyond: int, error: Exception) -> None:
        now = _now()
        if self._away_since is None:
            log.warning("lease_away", error=str(error) or type(error).__name__)
            self._away_since = now
        if beyond:
            lease.drop("another scheduler has the workers")
        elif not lease.fence and now - self._away_since >= self._ttl_s and await self._unattended():
            lease.hold(clock_fence())

    def _is_back(self) -> None:
        if self._away_since is not None:
            log.info("lease_back")
            self._away_since = None


async def nobody_steps(transports: Iterable[Transport]) -> bool:
    """Whether workers can be reached, and none of them has a scheduler's stream."""
    answers = await asyncio.gather(*(_is_stepped(transport) for transport in transports))
    return False in answers and True not in answers


async def _is_stepped(transport: Transport) -> bool | None:
    """None where it does not answer."""
    try:
        async with asyncio.timeout(_ASK_S):
            return (await transport.describe()).stepped
    except (WorkerLost, TimeoutError):
        return None


def _now() -> float:
    return asyncio.get_running_loop().time()
