"""Who gives way: to rows that need a block, to a higher priority, to a tenant that has been served less.

A row is paused at a step's edge. It keeps its tokens, its blocks stay in the cache until they are needed, and
it goes on from there with the very tokens it would have had.
"""

import math
from collections.abc import Iterable, Sequence
from enum import StrEnum

import numpy as np

from scheduler.fairness import Tenant
from scheduler.request import Request
from scheduler.rows import Rows

_STEPS_BEHIND = 8  # in which every row of a worker decodes


class Cause(StrEnum):
    """Why a row was paused."""

    MEMORY = "memory"
    PRIORITY = "priority"
    FAIRNESS = "fairness"
    TRIAL = "trial"  # of another request, on a worker set apart for it: see `suspects`


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

    def owe(self, head: Request, tenants: Iterable[Tenant]) -> bool:
        """Whether one of `tenants` must give a row to that of `head`."""
        return any(self._owes(tenant, head.tenant) for tenant in tenants)

    def for_fairness(self, head: Request, running: Sequence[int]) -> int | None:
        """The newest row of the tenant that was served most, of those that must give one."""
        owing = [
            (request.tenant.served, request.arrival, row)
            for row, request in zip(running, map(self._request, running), strict=True)
            if request.priority == head.priority and self._owes(request.tenant, head.tenant)
        ]
        return max(owing)[2] if owing else None

    def _owes(self, tenant: Tenant, other: Tenant) -> bool:
        """Whether it was served far more, and would have no fewer rows when one has changed hands.

        With equal rows debts are paid off, or grow no more: then it is for admission to even them out. Nobody
        can owe to who is charged nothing, and so counts as served infinitely less.
        """
        has_more_rows = (tenant.rows - 1) * other.weight >= (other.rows + 1) * tenant.weight
        return has_more_rows and self._debt / other.weight < tenant.served - other.served < math.inf

    def _dispensable(self, row: int) -> tuple[int, int]:
        return -int(self._rows.priority[row]), self._request(row).arrival

    def _request(self, row: int) -> Request:
        request = self._rows.requests[row]
        if request is None:
            raise AssertionError(f"row {row} is vacant")
        return request
