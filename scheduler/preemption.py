"""Who gives way: to rows that need a block, to a higher priority, to a tenant that has been served less.

A row is paused at a step's edge. It keeps its tokens, its blocks stay in the cache until they are needed, and
it goes on from there with the very tokens it would have had.
"""

from collections.abc import Iterable, Sequence
from enum import StrEnum

import numpy as np

from scheduler.fairness import LOOKAHEAD, Tenant
from scheduler.request import Request
from scheduler.rows import Rows

_STEPS_BEHIND = 32  # in which every row of a worker decodes


class Cause(StrEnum):
    """Why a row was paused."""

    MEMORY = "memory"
    PRIORITY = "priority"
    FAIRNESS = "fairness"


class Victims:
    """Chooses among rows that run."""

    def __init__(self, rows: Rows, budget: int) -> None:
        """`budget` is the most tokens in a step."""
        self._rows = rows
        # What a prompt takes in one step is no debt, nor is what evens out by itself in a while.
        self._debt = budget + _STEPS_BEHIND * rows.max_rows

    def for_memory(self, running: Sequence[int]) -> int:
        """The newest row of the lowest priority."""
        return max(running, key=self._dispensable)

    def for_priority(self, head: Request, running: Sequence[int]) -> list[int]:
        """Rows of a lower priority than `head`; who should leave first comes last."""
        every = np.array(running, np.int64)
        lower: list[int] = every[self._rows.priority[every] < head.priority].tolist()
        return sorted(lower, key=self._dispensable)

    def for_fairness(self, head: Request, running: Sequence[int], tenants: Iterable[Tenant]) -> int | None:
        """The newest row of the one served most of `tenants`, if `head` is of one served far less."""
        # Both as they will be once the row has changed hands, or it would soon change them again.
        least = head.tenant.served + (LOOKAHEAD + self._debt) / head.tenant.weight
        over = {tenant for tenant in tenants if tenant.served - LOOKAHEAD / tenant.weight > least}
        if not over:
            return None
        rows = [
            row
            for row in running
            if self._rows.priority[row] == head.priority and self._request(row).tenant in over
        ]
        return max(
            rows, key=lambda row: (self._request(row).tenant.served, self._request(row).arrival), default=None
        )

    def _dispensable(self, row: int) -> tuple[int, int]:
        return -int(self._rows.priority[row]), self._request(row).arrival

    def _request(self, row: int) -> Request:
        request = self._rows.requests[row]
        if request is None:
            raise AssertionError(f"row {row} is vacant")
        return request
