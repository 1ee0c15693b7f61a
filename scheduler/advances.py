"""What each tenant's rows on one worker cost it: a token for every step, and LOOKAHEAD of them in advance.

A row's advance is what it will take in the next LOOKAHEAD steps: less, when its answer may have fewer tokens
left. It is paid when the row is taken, and the last tokens are paid with it; what is left of it when a row
ends early is credited.

    advance(row) = min(LOOKAHEAD, limit - known)      tokens, once it decodes
"""

import numpy as np
import numpy.typing as npt

from scheduler.fairness import LOOKAHEAD, Tenant
from scheduler.rows import Rows


class Advances:
    """Charges the tenants of one worker's rows. A steady step touches no object per row."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._decoding: dict[Tenant, int] = {}  # rows
        self._ending: dict[Tenant, int] = {}  # of these, those whose last tokens are paid

    @property
    def tenants(self) -> list[Tenant]:
        """Those with rows that decode."""
        return list(self._decoding)

    def took(self, row: int) -> None:
        """A request has got `row`."""
        self._tenant(row).took_row(self._left(row))

    def begins_to_decode(self, row: int) -> None:
        """Its prompt is in a step, with the token sampled then counted in `known`."""
        tenant = self._tenant(row)
        _add(self._decoding, tenant, 1)
        if self._is_ending(row):
            _add(self._ending, tenant, 1)

    def step(self, decodes: npt.NDArray[np.int64]) -> None:
        """`decodes` take part in the step being composed; `known` does not yet count what they sample."""
        left = self._rows.limit[decodes] - self._rows.known[decodes]
        for row in decodes[left == LOOKAHEAD].tolist():
            _add(self._ending, self._tenant(row), 1)
        for tenant, count in self._decoding.items():
            paid = self._ending.get(tenant, 0)
            tenant.charge(count - paid)
            tenant.used_advance(paid)

    def left(self, row: int) -> None:
        """The request in `row` stops, at its end or before."""
        tenant = self._tenant(row)
        tenant.left_row(self._left(row))
        if self._rows.decoding[row]:
            _add(self._decoding, tenant, -1)
            if self._is_ending(row):
                _add(self._ending, tenant, -1)

    def _left(self, row: int) -> int:
        """The row's advance."""
        rows = self._rows
        to_come = int(rows.limit[row] - rows.known[row]) - (not rows.decoding[row])
        return max(0, min(LOOKAHEAD, to_come))

    def _is_ending(self, row: int) -> bool:
        return int(self._rows.limit[row] - self._rows.known[row]) < LOOKAHEAD

    def _tenant(self, row: int) -> Tenant:
        request = self._rows.requests[row]
        if request is None:
            raise AssertionError(f"row {row} is vacant")
        return request.tenant


def _add(counts: dict[Tenant, int], tenant: Tenant, count: int) -> None:
    counts[tenant] = counts.get(tenant, 0) + count
    if not counts[tenant]:
        del counts[tenant]
