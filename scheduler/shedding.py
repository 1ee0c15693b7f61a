"""The door: who may join the queue, who is sent away, and when he should come back.

Counted are requests that have not begun to run. One is refused, at once,

    where the server is full    more than the limits would wait
    where it came too late      those before it will take longer than its timeout, at the rate measured
    where its tenant has its    more than SHARE * weight times what is left of the limits would wait for it.
    share of the queue          So one tenant alone gets most of the queue, and there is room for one more

An empty queue takes anything. A full one lets the newest requests of the lowest priority go for one of a
higher. Retry-After is the time in which enough of those before will have begun to run, at the rate measured,
but after everybody else who was told to come back (`Tickets`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b

from protos.scheduling_pb2 import (
    REFUSAL_REASON_OVER_SHARE,
    REFUSAL_REASON_OVERLOADED,
    RefusalReason,
    Submit,
)
from scheduler.drain import DrainRate, Size
from scheduler.request import Request
from scheduler.tickets import Key, Tickets

SHARE = 8.0
OVERBOOKED = 1.25  # of the limits, for those with a ticket: estimates were wrong, or somebody came late
_UNKNOWN = 1.0  # seconds to wait where no rate was measured yet


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How much may wait."""

    requests: int
    tokens: int

    @property
    def size(self) -> Size:
        """As an amount."""
        return Size(self.requests, self.tokens)


BOUNDLESS = QueueLimits(1 << 30, 1 << 50)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request may not join, and when it may."""

    reason: "RefusalReason.ValueType"
    message: str
    retry_after_s: float


class _Newcomers:
    """Of one priority, in the order they came."""

    def __init__(self) -> None:
        self.requests: dict[Request, None] = {}
        self.size = Size()


class Door:
    """Knows who waits and has not run yet."""

    def __init__(self, limits: QueueLimits, clock: Callable[[], float]) -> None:
        self.shed = 0
        self.refused: dict[str, int] = {}  # by name of the reason
        self.rate = DrainRate(clock)
        self.tickets = Tickets()
        self.offered = Size()  # all that ever came, refused or not; who comes back as told has come once
        self.begun = Size()  # all that ever began to run
        self._limits = limits.size
        self._clock = clock
        self._inside: dict[Request, int] = {}  # and the priority they came with
        self._by_priority: dict[int, _Newcomers] = {}
        self._by_tenant: dict[str, Size] = {}
        self._size = Size()

    @property
    def size(self) -> Size:
        """What waits and has not run yet."""
        return self._size

    @property
    def by_tenant(self) -> Mapping[str, Size]:
        """The same, by the tenant's name. A copy: any thread may ask."""
        return dict(self._by_tenant)

    def oldest(self) -> Mapping[str, float]:
        """When the first of each tenant's came, by the clock. Any thread may ask; it looks at all."""
        oldest: dict[str, float] = {}
        for request in list(self._inside):  # in the order they came
            oldest.setdefault(request.tenant.name, request.arrived)
        return oldest

    def turned_away(self, reason: "RefusalReason.ValueType") -> None:
        """Counts a request that does not join, for whatever reason."""
        name = RefusalReason.Name(reason)
        self.refused[name] = self.refused.get(name, 0) + 1

    def ask(self, submit: Submit) -> Refusal | None:
        """Whether `submit` may not join. Refused ones get a ticket, and those with one hand it over."""
        now = self._clock()
        self.tickets.advance(now)
        size = Size(1, len(submit.tokens) // 4)
        key = _key_of(submit) if self.tickets else None
        due = self.tickets.wait(key, now) if key else None
        if due is None:
            self.offered = self.offered.plus(size)
        refusal = self._too_late(submit) or self._no_room(submit, size, has_ticket=due == 0)
        if refusal is None:
            if key:
                self.tickets.claim(key)
            return None
        self.turned_away(refusal.reason)
        if due:  # it has been told already, and did not wait
            return Refusal(refusal.reason, refusal.message, due)
        earliest = now + refusal.retry_after_s
        due = self.tickets.give(key or _key_of(submit), size, earliest, self.rate.seconds_for(size))
        return Refusal(refusal.reason, refusal.message, due - now)

    def to_shed(self, submit: Submit) -> list[Request]:
        """Requests that should go so that `submit`, of a higher priority, can join; none if it is no use."""
        excess = self._size.plus(Size(1, len(submit.tokens) // 4)).minus(self._limits)
        shed: list[Request] = []
        for priority in sorted(level for level in self._by_priority if level < -submit.priority):
            for request in reversed(self._by_priority[priority].requests):
                if excess.within(Size()):
                    return shed
                shed.append(request)
                excess = excess.minus(_size_of(request))
        return shed if excess.within(Size()) else []

    def entered(self, request: Request) -> None:
        """`request` joins the queue."""
        size = _size_of(request)
        self._inside[request] = request.priority
        level = self._by_priority.setdefault(request.priority, _Newcomers())
        level.requests[request] = None
        level.size = level.size.plus(size)
        name = request.tenant.name
        self._by_tenant[name] = self._by_tenant.get(name, Size()).plus(size)
        self._size = self._size.plus(size)
        self.rate.waits()

    def left(self, request: Request) -> None:
        """`request` begins to run, or is over. Nothing happens if it had begun before."""
        priority = self._inside.pop(request, None)
        if priority is None:
            return
        size = _size_of(request)
        level = self._by_priority[priority]
        del level.requests[request]
        level.size = level.size.minus(size)
        if not level.requests:
            del self._by_priority[priority]
        name = request.tenant.name
        self._by_tenant[name] = self._by_tenant[name].minus(size)
        if not self._by_tenant[name].requests:
            del self._by_tenant[name]
        self._size = self._size.minus(size)
        if request.started:
            self.begun = self.begun.plus(size)
            self.rate.started(size)
        if not self._inside:
            self.rate.empty()

    def _too_late(self, submit: Submit) -> Refusal | None:
        if not submit.timeout_ms:
            return None
        before = Size()
        for priority, level in self._by_priority.items():
            if priority >= -submit.priority:
                before = before.plus(level.size)
        wait, timeout = self.rate.seconds_for(before), submit.timeout_ms / 1000
        if wait <= timeout:
            return None
        return Refusal(
            REFUSAL_REASON_OVERLOADED,
            f"The request would wait about {wait:.1f} s, longer than its timeout of {timeout:g} s.",
            wait - timeout,
        )

    def _no_room(self, submit: Submit, size: Size, *, has_ticket: bool) -> Refusal | None:
        if not self._inside:
            return None
        if has_ticket:
            most = self._limits.times(OVERBOOKED)
            fits = self._size.plus(size).within(most)
            return None if fits else self._full(self._size.plus(size).minus(most))
        half = self._limits.times(0.5)
        reserved = self.tickets.reserved
        # Never so much that the queue could run empty for somebody who does not come.
        reserved = Size(min(reserved.requests, half.requests), min(reserved.tokens, half.tokens))
        wanted = self._size.plus(size).plus(reserved)
        if not wanted.within(self._limits):
            return self._full(wanted.minus(self._limits))
        share = self._limits.minus(wanted).times(SHARE * (submit.weight or 1.0))
        own = self._by_tenant.get(submit.tenant, Size())
        if not own.requests or own.plus(size).within(share):
            return None
        # What its tenant's part of the rate, among those that wait, takes off by then.
        seconds = self.rate.seconds_for(own.plus(size).minus(share)) * len(self._by_tenant)
        return Refusal(
            REFUSAL_REASON_OVER_SHARE,
            f"{own.requests:.0f} requests with {own.tokens:.0f} tokens of this client wait already.",
            seconds or _UNKNOWN,
        )

    def _full(self, excess: Size) -> Refusal:
        size = self._size
        return Refusal(
            REFUSAL_REASON_OVERLOADED,
            f"The server is full: {size.requests:.0f} requests with {size.tokens:.0f} tokens wait.",
            self.rate.seconds_for(excess) or _UNKNOWN,
        )


def _size_of(request: Request) -> Size:
    return Size(1, len(request.tokens))


def _key_of(submit: Submit) -> Key:
    return submit.tenant, blake2b(submit.tokens, digest_size=16).digest()
