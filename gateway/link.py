"""The gateway's way to the schedulers, over which all its requests go.

There is a line to each scheduler, and one is active: the one whose stream has the highest fence. When its
stream breaks, or one with a higher fence opens, the live requests are submitted again where they now belong,
each with the answer so far. Their readers see a pause. See docs/recovery.md.
"""

import asyncio
import itertools
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

import structlog

from batchyard.errors import SchedulerLost
from batchyard.tls import TlsFiles
from gateway.line import LASTED_S, Line
from gateway.live import LiveRequests
from gateway.scheduler_stream import SchedulerStream
from gateway.subscription import Subscription
from protos.scheduling_pb2 import Description, Submit, WarmPrompt

if TYPE_CHECKING:
    from gateway.scheduler_stream import Call

log = structlog.get_logger()

_LOOK_EVERY_S = 0.05  # at who has waited too long, while there is no stream


class SchedulerLink:
    """Submits requests and deals out what comes back. An asynchronous context manager; enter it once."""

    def __init__(
        self,
        addresses: Sequence[str],
        warm_prompts: Sequence[WarmPrompt] = (),
        wait_s: float = 30.0,
        tls: TlsFiles | None = None,
    ) -> None:
        """`addresses` are the schedulers', host:port or unix:/path. Nothing is sent before `__aenter__`.

        Requests without a scheduler wait for one up to `wait_s` seconds. Each scheduler is told of
        `warm_prompts` before there is a stream to it.
        """
        self._lines = [Line(address, warm_prompts, self._use, tls) for address in addresses]
        self._wait_s = wait_s
        self._ids = itertools.count(1)
        self._live = LiveRequests()
        self._fence = 0  # the highest seen
        self._active: tuple[Line, SchedulerStream] | None = None
        self._open = asyncio.Event()  # set while there is a stream
        self._away = asyncio.Event()  # set while there is none
        self._away_since = 0.0
        self._why_away = "the scheduler cannot be reached now"
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "SchedulerLink":
        """Starts to connect; does not wait for it."""
        self._away_since = _now()
        self._away.set()
        self._tasks = [asyncio.create_task(line.run()) for line in self._lines]
        self._tasks.append(asyncio.create_task(self._end_who_waited_too_long()))
        return self

    async def __aexit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Ends the streams, and with them the requests that are left: they raise SchedulerLost."""
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        for request in self._live:
            self._live.fail(request, SchedulerLost("the gateway is closing"))
        for line in self._lines:
            await line.close()

    @property
    def connected(self) -> bool:
        """Whether there is a stream to an active scheduler now."""
        return self._active is not None

    async def wait_connected(self) -> None:
        """Returns when there is a stream to an active scheduler. Raises SchedulerLost after `wait_s`."""
        try:
            await asyncio.wait_for(self._open.wait(), self._wait_s)
        except TimeoutError:
            raise self._lost() from None

    @property
    def num_live(self) -> int:
        """Requests submitted whose end is not known."""
        return len(self._live)

    def submit(self, request: Submit) -> Subscription:
        """Sends a request, under an id set here, when there is a stream."""
        request.id = next(self._ids)
        subscription = self._live.add(request, self._end, _now())
        if self._active:
            self._active[1].submit(request.id)
        else:
            subscription.lost()
        return subscription

    def keep(self, trace_ids: Sequence[int]) -> None:
        """Has scheduler and workers export these traces. Where there is no scheduler, nobody hears."""
        if self._active:
            self._active[1].keep(trace_ids)

    async def describe(self, timeout_s: float = 2.0, max_tenants: int = 0) -> Description:
        """The active scheduler's state, with so many of the tenants that have requests.

        Raises SchedulerLost where none tells it in `timeout_s` seconds.
        """
        if self._active is None:
            raise self._lost()
        return await self._active[0].describe(timeout_s, max_tenants)

    def _end(self, submit_id: int) -> None:
        # What was live no more has ended by itself.
        if self._live.remove(submit_id) and self._active:
            self._active[1].cancel(submit_id)

    async def _use(self, line: Line, call: "Call", fence: int) -> None:
        """Has the live requests carried by a new stream, unless one with a higher fence was there."""
        if fence < self._fence:
            log.info("a scheduler is outranked", address=line.address, fence=fence, by=self._fence)
            return
        self._fence = fence
        if self._active:
            self._active[1].replace()
            self._live.lost()
        self._live.end_overdue(_now())
        stream = SchedulerStream(call, self._live)
        self._active = line, stream
        self._open.set()
        self._away.clear()
        log.info("connected to the scheduler", address=line.address, fence=fence, requests=len(self._live))
        opened, reason = _now(), ""
        try:
            reason = await stream.run()
        finally:
            if reason:  # else this gateway is closing
                log.warning(
                    "lost the scheduler", address=line.address, reason=reason, requests=len(self._live)
                )
            if self._active == (line, stream):
                self._lose(worked=stream.heard or _now() - opened > LASTED_S)

    def _lose(self, *, worked: bool) -> None:
        self._active = None
        self._open.clear()
        self._away.set()
        self._why_away = "lost the scheduler"  # the reason is for the log
        self._live.lost()
        # Streams that break at once are no end of the wait: a request that breaks them would wait for ever.
        if worked:
            self._away_since = _now()

    async def _end_who_waited_too_long(self) -> None:
        while True:
            await self._away.wait()
            now = _now()
            self._live.end_overdue(now)
            for request in self._live:
                if now - max(self._away_since, request.began) >= self._wait_s:
                    self._live.fail(request, self._lost())
            await asyncio.sleep(_LOOK_EVERY_S)

    def _lost(self) -> SchedulerLost:
        return SchedulerLost(self._why_away)


def _now() -> float:
    """Seconds, by the clock of deadlines here."""
    return asyncio.get_running_loop().time()
