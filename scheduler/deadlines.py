"""Ends requests whose time is up, wherever they are: in a queue, on their way from host memory, in a row."""

import asyncio
import heapq
from collections.abc import Callable

from scheduler.request import Request

_LEAST = 64  # entries before the first look for ones that are over


class Deadlines:
    """A heap and one timer, for the earliest deadline."""

    def __init__(self, clock: Callable[[], float], expire: Callable[[Request], None]) -> None:
        """`expire` is called with each request that is not over at its deadline, by `clock`."""
        self._clock = clock
        self._expire = expire
        self._heap: list[tuple[float, int, Request]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._sweep_at = _LEAST

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, request: Request) -> None:
        """`request` ends at its deadline at the latest. Needs a running event loop."""
        if len(self._heap) >= self._sweep_at:
            self._sweep()
        entry = (request.deadline, request.arrival, request)
        heapq.heappush(self._heap, entry)
        if self._heap[0] is entry:
            self._set_timer()

    def _sweep(self) -> None:
        """Forgets what is over, or requests long done would be kept until their deadlines."""
        self._heap = [entry for entry in self._heap if entry[2].session.has(entry[2])]
        heapq.heapify(self._heap)
        self._sweep_at = max(_LEAST, 2 * len(self._heap))

    def _set_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
        delay = max(0.0, self._heap[0][0] - self._clock())
        self._timer = asyncio.get_running_loop().call_later(delay, self._fire)

    def _fire(self) -> None:
        self._timer = None
        now = self._clock()
        while self._heap and self._heap[0][0] <= now:
            request = heapq.heappop(self._heap)[2]
            if request.session.has(request):
                self._expire(request)
        if self._heap:
            self._set_timer()
