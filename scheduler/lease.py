"""Who of several schedulers is the active one: the lease, and its fence.

A scheduler that holds the lease is active under a fence, a number that outranks every one before it. Workers
refuse who comes with a lower one, and gateways leave him: so it does no harm that a scheduler learns late
that it has lost the lease, as after a pause. What its workers tell it is one way to learn.
"""

import asyncio
import time

import structlog

log = structlog.get_logger()


class Lease:
    """Whether this scheduler is the active one. Somebody else, a keeper, sees to that it is, or is not."""

    def __init__(self) -> None:
        self._fence = 0
        self._outranked_by = 0
        self._changed = asyncio.Event()
        self._challenged = asyncio.Event()

    @property
    def fence(self) -> int:
        """While this scheduler is active; 0 while it is a standby."""
        return self._fence

    async def held(self) -> int:
        """Returns the fence as soon as there is one."""
        while not self._fence:
            await self._changed.wait()
        return self._fence

    async def ended(self, fence: int) -> None:
        """Returns as soon as this scheduler is not active under `fence`."""
        while self._fence == fence:
            await self._changed.wait()

    def outranked(self, by: int) -> None:
        """A worker has seen the fence `by`, higher than ours."""
        if by > max(self._fence, self._outranked_by):
            self._outranked_by = by
            self._challenged.set()

    # For the keeper

    def hold(self, fence: int) -> None:
        """This scheduler is active under `fence` from now on."""
        if fence != self._fence:
            log.info("lease_held", fence=fence)
            self._change(fence)

    def drop(self, reason: str, *, foreseen: bool = False) -> None:
        """This scheduler is a standby from now on."""
        if self._fence:
            say = log.info if foreseen else log.warning
            say("lease_lost", fence=self._fence, reason=reason)
            self._change(0)

    async def challenged(self, timeout_s: float | None = None) -> int:
        """The highest fence by which we were outranked since the last call; 0 if not within `timeout_s`."""
        try:
            await asyncio.wait_for(self._challenged.wait(), timeout_s)
        except TimeoutError:
            return 0
        self._challenged.clear()
        by, self._outranked_by = self._outranked_by, 0
        return by

    def _change(self, fence: int) -> None:
        self._fence = fence
        self._changed.set()
        self._changed = asyncio.Event()


async def keep_alone(lease: Lease) -> None:
    """Keeps the lease where no standby is foreseen: whoever starts last has it. Runs until cancelled."""
    lease.hold(clock_fence())
    while True:
        by = await lease.challenged()
        if by >= clock_fence():  # no scheduler can have started later than now: our clock was put back
            lease.hold(by + 1)
        else:
            lease.drop("another scheduler was started for these workers; standbys need --redis")


def clock_fence() -> int:
    """Microseconds since 1970: higher for whoever starts later."""
    return time.time_ns() // 1000
