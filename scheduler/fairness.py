"""Who has been served how much: virtual token counters, one per tenant.

After VTC (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024). A tenant's counter grows by
tokens computed for it, divided by its weight; whoever waits and has the least goes first.

    charge        1 for every token computed, of prompts and of answers, when its step is composed. A token
                  found in the device's cache costs nothing, one loaded from host memory what loading it takes
                  (`MoveCosts.tokens_worth`), one computed again after its row was lost nothing more
    lookahead     what a row takes in its first LOOKAHEAD steps is charged when it is taken (`Advances`).
                  Rows are held for long: without it a tenant that is behind would be given rows until it has
                  caught up, and would keep far too many of them for as long as its answers last
    house         the scheduler's own requests go before all others of their priority, and nobody pays
    lift          a tenant that has nothing waiting, and comes back, starts no lower than the least counter of
                  those that wait: nobody saves up what he did not use

Counters never fall, so heaps ordered by them may be out of date and are still right where it matters: an
entry seen at the front whose tenant has moved on sinks to its place.
"""

import heapq
import math
from dataclasses import dataclass

LOOKAHEAD = 64  # tokens that each row of a tenant counts in advance, at most
_SWEEP = 64  # tenants known before the first look for ones to forget


@dataclass(slots=True, eq=False)
class Tenant:
    """One tenant's account.

    `counter` is in tokens of weight 1. `credit`, in tokens, is used up before it grows.
    """

    name: str = ""
    weight: float = 1.0
    counter: float = 0.0
    credit: float = 0.0
    waiting: int = 0  # requests in a queue
    rows: int = 0  # requests in rows
    advance: int = 0  # tokens that these count in advance
    entry: int = 0  # its valid one in the heap of those that wait

    @property
    def served(self) -> float:
        """Tokens computed for it, by weight: its counter without what was charged in advance."""
        return self.counter - (self.credit + self.advance) / self.weight

    def charge(self, tokens: float) -> None:
        """So many tokens are computed for it."""
        used = min(self.credit, tokens)
        self.credit -= used
        self.counter += (tokens - used) / self.weight

    def took_row(self, advance: int) -> None:
        """One of its requests runs, and counts so many tokens in advance."""
        self.rows += 1
        self.advance += advance
        self.charge(advance)

    def used_advance(self, tokens: int) -> None:
        """So many tokens that were counted in advance are computed for it."""
        self.advance -= tokens

    def left_row(self, advance: int) -> None:
        """One of its requests runs no more, and has so much of its advance left."""
        self.rows -= 1
        self.advance -= advance
        self.credit += advance


class Tenants:
    """Everybody with something to do, and those whose counters still say something."""

    def __init__(self) -> None:
        self.house = Tenant(counter=-math.inf)  # whatever it is charged
        self._known: dict[str, Tenant] = {}
        self._level = 0.0  # nobody comes in below
        self._waiting: list[tuple[float, int, Tenant]] = []  # a lazy heap of those that wait
        self._entries = 0
        self._sweep_at = _SWEEP

    def __len__(self) -> int:
        return len(self._known)

    def present(self) -> list[Tenant]:
        """Those with requests, who has the most of them first. Looks at everybody known; any thread may."""
        present = [tenant for tenant in list(self._known.values()) if tenant.waiting or tenant.rows]
        return sorted(present, key=lambda tenant: (-tenant.waiting - tenant.rows, tenant.name))

    def arriving(self, name: str, weight: float) -> Tenant:
        """The tenant whose request comes in now, lifted if none of its own waits.

        `weight` holds from now; what is no positive number counts as 1.
        """
        if (tenant := self._known.get(name)) is None:
            self._sweep()
            tenant = self._known[name] = Tenant(name)
        tenant.weight = weight if 0 < weight < math.inf else 1.0
        if not tenant.waiting:
            tenant.counter = max(tenant.counter, self._least_waiting())
        return tenant

    def waits(self, tenant: Tenant) -> None:
        """A request of `tenant` entered a queue."""
        tenant.waiting += 1
        if tenant.waiting == 1 and tenant is not self.house:  # the least is that of others
            self._entries += 1
            tenant.entry = self._entries
            heapq.heappush(self._waiting, (tenant.counter, tenant.entry, tenant))

    def waited(self, tenant: Tenant) -> None:
        """A request of `tenant` left a queue."""
        tenant.waiting -= 1
        if not tenant.waiting:
            # Should the queue be empty now, who comes next is the equal of the last one served.
            self._level = max(self._level, self._least_waiting(default=tenant.counter))

    def _least_waiting(self, default: float = 0.0) -> float:
        while self._waiting:
            counter, entry, tenant = self._waiting[0]
            if not tenant.waiting or entry != tenant.entry:
                heapq.heappop(self._waiting)
            elif tenant.counter > counter:
                heapq.heapreplace(self._waiting, (tenant.counter, entry, tenant))
            else:
                return max(self._level, counter)
        return max(self._level, default)

    def _sweep(self) -> None:
        """Forgets who would be lifted on coming back. O(1) for each tenant that ever came."""
        if len(self._known) < self._sweep_at:
            return
        self._known = {
            name: tenant
            for name, tenant in self._known.items()
            if tenant.waiting or tenant.rows or tenant.counter > self._level
        }
        self._sweep_at = max(_SWEEP, 2 * len(self._known))
