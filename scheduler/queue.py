"""Requests that wait: the highest priority first, of equals the tenant served least, of its own the oldest.

A request that lost its row comes back to its old place among its tenant's. Every class of lower priority
still gets on: once in PROMOTION_INTERVAL the request that has waited longest there, and longer than PATIENCE,
joins the highest class for good. So everybody's turn comes, and high priority loses one place a second at
most.
"""

import heapq
import time
from collections.abc import Callable

from scheduler.fairness import Tenant, Tenants
from scheduler.request import Request

PATIENCE = 10.0  # seconds
PROMOTION_INTERVAL = 1.0  # seconds


class _Class:
    """The requests of one priority: a heap by arrival for each tenant, and a lazy heap of the tenants."""

    def __init__(self) -> None:
        self.work = 0
        self.flows: dict[Tenant, list[tuple[int, Request]]] = {}
        self._turns: list[tuple[float, int, Tenant]] = []  # one for each flow
        self._work_of: dict[Tenant, int] = {}

    def work_of(self, tenant: Tenant) -> int:
        return self._work_of.get(tenant, 0)

    def push(self, request: Request) -> None:
        self.work += request.work
        self._work_of[request.tenant] = self.work_of(request.tenant) + request.work
        flow = self.flows.get(request.tenant)
        if flow is None:
            flow = self.flows[request.tenant] = []
            heapq.heappush(self._turns, (request.tenant.counter, request.arrival, request.tenant))
        heapq.heappush(flow, (request.arrival, request))

    def first(self) -> Request | None:
        while self._turns:
            counter, arrival, tenant = self._turns[0]
            flow = self.flows[tenant]
            _drop_cancelled(flow)
            if not flow:
                heapq.heappop(self._turns)
                del self.flows[tenant], self._work_of[tenant]
            elif tenant.counter > counter:  # it has been served since; counters never fall
                heapq.heapreplace(self._turns, (tenant.counter, arrival, tenant))
            else:
                return flow[0][1]
        return None

    def pop(self, request: Request) -> None:
        """`request`, which is the oldest of its tenant, leaves."""
        self.forget(request)
        heapq.heappop(self.flows[request.tenant])

    def forget(self, request: Request) -> None:
        """The work of `request` will not be done."""
        self.work -= request.work
        self._work_of[request.tenant] -= request.work

    def oldest(self) -> Request | None:
        """The one that came first. Looks at every tenant."""
        for flow in self.flows.values():
            _drop_cancelled(flow)
        return min((flow[0] for flow in self.flows.values() if flow), default=(0, None))[1]


def _drop_cancelled(flow: list[tuple[int, Request]]) -> None:
    while flow and flow[0][1].cancelled:
        heapq.heappop(flow)


class WaitingQueue:
    """Cancelled requests are dropped when they come to the front. O(log n) but for promotions."""

    def __init__(self, tenants: Tenants, clock: Callable[[], float] = time.monotonic) -> None:
        self._tenants = tenants
        self._clock = clock
        self._classes: dict[int, _Class] = {}
        self._order: list[int] = []  # priorities that occur, the highest first
        self._length = 0
        self._promoted_at = 0.0

    def __len__(self) -> int:
        return self._length

    @property
    def work(self) -> int:
        """Tokens to compute of the requests in here."""
        return sum(each.work for each in self._classes.values())

    def work_before(self, request: Request) -> int:
        """Tokens to compute before `request` might have its turn here.

        All those of its tenant and of higher priorities, and of other tenants no more than of its own: they
        take turns.
        """
        higher = sum(each.work for level, each in self._classes.items() if level > request.priority)
        if (equals := self._classes.get(request.priority)) is None:
            return higher
        return higher + min(equals.work, len(equals.flows) * equals.work_of(request.tenant))

    def push(self, request: Request) -> None:
        """Adds a request at the place that its priority, its tenant and its arrival give it."""
        self._insert(request)
        self._length += 1
        self._tenants.waits(request.tenant)

    def peek(self) -> Request | None:
        """The first request, which stays; None when nobody waits."""
        if len(self._order) > 1:
            self._promote()
        while self._order:
            if first := self._classes[self._order[0]].first():
                return first
            del self._classes[self._order.pop(0)]
        return None

    def pop(self) -> Request:
        """Takes the first request. Needs one."""
        request = self.peek()
        if request is None:
            raise AssertionError("nobody waits")
        self._classes[request.priority].pop(request)
        self._left(request)
        return request

    def cancel(self, request: Request) -> None:
        """`request`, which is in here, will not be seen again."""
        request.cancelled = True
        self._classes[request.priority].forget(request)
        self._left(request)

    def drain(self) -> list[Request]:
        """Takes all."""
        taken = []
        while self.peek():
            taken.append(self.pop())
        return taken

    def _insert(self, request: Request) -> None:
        if request.priority not in self._classes:
            self._classes[request.priority] = _Class()
            self._order = sorted(self._classes, reverse=True)
        self._classes[request.priority].push(request)

    def _left(self, request: Request) -> None:
        self._length -= 1
        self._tenants.waited(request.tenant)

    def _promote(self) -> None:
        now = self._clock()
        if now - self._promoted_at < PROMOTION_INTERVAL:
            return
        self._promoted_at = now
        waiting = [self._classes[level].oldest() for level in self._order[1:]]
        patient = [request for request in waiting if request and now - request.arrived > PATIENCE]
        if not patient:
            return
        request = min(patient, key=lambda request: request.arrival)
        self._classes[request.priority].pop(request)
        request.priority = self._order[0]
        self._insert(request)
