"""What was promised to those who were sent away: a Retry-After is an appointment.

Under overload, room that comes free is taken by whoever happens to come next, and a client that waits as it
was told finds the queue as full as before. So a refused request gets a ticket, known by its tenant and its
prompt; once it is due, room is kept for it, for GRACE seconds, and it goes before those that come for the
first time.

Not everybody comes back. `returning` is the share that did, lately: so much of what was promised counts.
"""

import heapq
from dataclasses import dataclass

from scheduler.drain import Size

GRACE = 5.0  # seconds
_MOST = 1 << 16  # tickets
_MARGIN = 1.1  # more time for each than it should take
_WEIGHT = 0.02  # of the newest in the share that comes back

Key = tuple[str, bytes]


@dataclass(slots=True, eq=False)
class _Ticket:
    key: Key
    due: float
    size: Size
    is_due: bool = False
    over: bool = False


class Tickets:
    """Times are seconds by the caller's clock, which `advance` is told before anything is asked."""

    def __init__(self) -> None:
        self.returning = 1.0
        self._known: dict[Key, _Ticket] = {}
        self._future: list[tuple[float, int, _Ticket]] = []
        self._due: list[tuple[float, int, _Ticket]] = []  # by when they lapse
        self._numbers = 0
        self._horizon = 0.0  # until then all that comes free is promised
        self._reserved = Size()

    def __len__(self) -> int:
        return len(self._known)

    @property
    def reserved(self) -> Size:
        """What may be claimed now, as far as it is expected to be."""
        return self._reserved.times(self.returning)

    def advance(self, now: float) -> None:
        """It is `now`: tickets become due, and lapse."""
        while self._future and self._future[0][0] <= now:
            due, number, ticket = heapq.heappop(self._future)
            if not ticket.over:
                ticket.is_due = True
                self._reserved = self._reserved.plus(ticket.size)
                heapq.heappush(self._due, (due + GRACE, number, ticket))
        while self._due and self._due[0][0] <= now:
            ticket = heapq.heappop(self._due)[2]
            if not ticket.over:
                self._take(ticket)
                self.returning -= _WEIGHT * self.returning

    def wait(self, key: Key, now: float) -> float | None:
        """Seconds until the ticket of `key` is due, 0 if it is; None without one."""
        ticket = self._known.get(key)
        return max(0.0, ticket.due - now) if ticket else None

    def give(self, key: Key, size: Size, earliest: float, seconds: float) -> float:
        """When room for `size`, which takes `seconds` to come free, is kept for `key`: not before `earliest`.

        What it was told before counts no more.
        """
        if ticket := self._known.get(key):
            self._take(ticket)
        due = max(earliest, self._horizon)
        if len(self._known) >= _MOST:
            return due
        # One after another: computed anew from all that is promised, a rate that varies would heap them up.
        self._horizon = due + _MARGIN * self.returning * seconds
        self._numbers += 1
        ticket = self._known[key] = _Ticket(key, due, size)
        heapq.heappush(self._future, (due, self._numbers, ticket))
        return due

    def claim(self, key: Key) -> None:
        """The request of `key` is here, if it has a ticket."""
        if ticket := self._known.get(key):
            self._take(ticket)
            self.returning += _WEIGHT * (1 - self.returning)

    def _take(self, ticket: _Ticket) -> None:
        ticket.over = True
        del self._known[ticket.key]
        if ticket.is_due:
            self._reserved = self._reserved.minus(ticket.size)
