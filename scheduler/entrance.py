"""The way from the queue to a row: what of a request is cached, whether it fits, what it must wait for."""

import time
from dataclasses import dataclass

from prefix_cache.hashing import Digest
from scheduler.peak import PeakMemory
from scheduler.queue import WaitingQueue
from scheduler.request import Request
from scheduler.rows import Rows
from scheduler.tiers import Prefix, Tiers


@dataclass(frozen=True, slots=True)
class Room:
    """That `request` fits: blocks that hold its beginning, and how many more it needs."""

    request: Request
    cached: list[int]
    fresh: int
    looked_ns: int  # Unix time at which the search for it began


@dataclass(frozen=True, slots=True)
class _Blocked:
    """The first in the queue did not fit, and what was known then of how far it was from that.

    It can fit only once `lacking` blocks have returned, or become known, or are no longer kept for rows; or
    once the first block that was not found is there, for behind it there may be many that are known already.
    So until then the walk down its chain, 0.7 ms for 100,000 tokens, is not repeated in every step.
    """

    request: Request
    tokens: int
    lacking: int  # but for those kept for rows
    missing: Digest | None  # the first block of its chain that was not found
    returned: int
    registered: int

    def holds(self, request: Request, running: int, tiers: Tiers) -> bool:
        """Whether `request` cannot fit yet."""
        if request is not self.request or len(request.tokens) != self.tokens:
            return False
        if self.missing is not None and tiers.knows(self.missing):
            return False
        pool = tiers.pool
        gained = pool.returned - self.returned + pool.registered - self.registered
        return self.lacking + running > gained


class Entrance:
    """Lets requests in by their order, but for those that wait for blocks to come from host memory."""

    def __init__(self, rows: Rows, tiers: Tiers, memory: PeakMemory, *, caching: bool) -> None:
        self._rows = rows
        self._tiers = tiers
        self._memory = memory
        self._caching = caching
        self._aside: dict[Request, int] = {}  # and the step whose loads they wait for
        self._blocked: _Blocked | None = None

    @property
    def aside(self) -> list[Request]:
        """Requests that wait for blocks to come from host memory."""
        return list(self._aside)

    def find(self, request: Request) -> Prefix:
        """What there is of `request` in the cache, and shall be used."""
        if not self._caching or request.reads_prompt_logits:
            return Prefix([])
        request.hash_blocks(request.tokens, self._rows.block_size)
        # One token at least is computed, or there would be nothing to sample from.
        usable = (len(request.tokens) - 1) // self._rows.block_size
        prefix = self._tiers.find(request.digests[:usable])
        # Loaded once already: what has been evicted again meanwhile is computed.
        load = not request.loaded and self._tiers.worth_loading(prefix)
        return prefix if load or prefix.awaited else Prefix(prefix.head)

    def next(self, waiting: WaitingQueue, running: list[int], step: int, spare: int) -> Room | None:
        """Takes the first request out of the queue that can have a row in `step`, the next one.

        Those whose beginning is on its way, or begins to be now, are set aside; a row is left for each.
        `running`: rows that may need a block soon; `spare`: how many must stay vacant.
        """
        while self._rows.vacant > len(self._aside) + spare and (request := waiting.peek()):
            looked_ns = time.time_ns()
            if self._blocked and self._blocked.holds(request, len(running), self._tiers):
                return None
            self._blocked = None
            prefix = self.find(request)
            if prefix.awaited:
                self._aside[waiting.pop()] = prefix.awaited
                continue
            on_device = prefix.on_device
            fresh = self._fresh(request, on_device)
            if not self._has_blocks(request, fresh, prefix, len(running)):
                return None
            if not self._memory.fits(request, on_device, running):
                return None
            if not self._tiers.make_ready(fresh, on_device):
                return None
            if not self._tiers.has(prefix):  # room was made on the host too, and what was found there is gone
                continue
            waiting.pop()
            if not prefix.rest:
                return Room(request, prefix.head, fresh, looked_ns)
            self._tiers.load(prefix, step)
            request.loaded = prefix.num_loads * self._rows.block_size
            self._aside[request] = step
        return None

    def return_arrived(self, waiting: WaitingQueue) -> None:
        """Requests whose loads are done take their old places in the queue."""
        for request in [request for request, step in self._aside.items() if step <= self._tiers.loaded]:
            del self._aside[request]
            waiting.push(request)

    def forget(self, request: Request) -> bool:
        """`request`, which has no row, is over. False if it had not been set aside, but waits elsewhere."""
        return self._aside.pop(request, None) is not None

    def has_room(self, request: Request, running: list[int], rows: int, blocks: int) -> bool:
        """Whether there will be room for `request` once so many more rows and blocks have come back."""
        if self._rows.vacant + rows <= len(self._aside):
            return False
        on_device = self.find(request).on_device
        lacking = self._lacking(self._fresh(request, on_device), on_device)
        return lacking + len(running) <= blocks and self._memory.fits(request, on_device, running)

    def _fresh(self, request: Request, on_device: list[int]) -> int:
        return -(-len(request.tokens) // self._rows.block_size) - len(on_device)

    def _lacking(self, fresh: int, on_device: list[int]) -> int:
        """How many blocks there are too few, but for those kept for rows."""
        pool = self._tiers.pool
        return fresh + pool.idle_among(on_device) - pool.available

    def _has_blocks(self, request: Request, fresh: int, prefix: Prefix, running: int) -> bool:
        """Whether there are blocks for a whole prompt, with one to spare for each row that runs."""
        lacking = self._lacking(fresh, prefix.on_device)
        if lacking + running <= 0:
            return True
        pool = self._tiers.pool
        missing = next(iter(request.digests[prefix.length :]), None)
        self._blocked = _Blocked(
            request, len(request.tokens), lacking, missing, pool.returned, pool.registered
        )
        return False
