"""Requests that wait, first come first served; one that lost its row comes back to its old place."""

import heapq

from scheduler.request import Request


class WaitingQueue:
    """Ordered by arrival. Cancelled requests are dropped when they come to the front."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, Request]] = []
        self._cancelled = 0
        self.work = 0  # tokens to compute of the requests in here

    def __len__(self) -> int:
        return len(self._heap) - self._cancelled

    def push(self, request: Request) -> None:
        """Adds a request at the place its arrival gives it."""
        heapq.heappush(self._heap, (request.arrival, request))
        self.work += request.work

    def peek(self) -> Request | None:
        """The first request, which stays; None when nobody waits."""
        while self._heap and self._heap[0][1].cancelled:
            heapq.heappop(self._heap)
            self._cancelled -= 1
        return self._heap[0][1] if self._heap else None

    def pop(self) -> Request:
        """Takes the request that `peek` showed."""
        request = heapq.heappop(self._heap)[1]
        self.work -= request.work
        return request

    def cancel(self, request: Request) -> None:
        """`request`, which is in here, will not be seen again."""
        request.cancelled = True
        self._cancelled += 1
        self.work -= request.work

    def drain(self) -> list[Request]:
        """Takes all, in order."""
        taken = []
        while self.peek():
            taken.append(self.pop())
        return taken
