"""Who keeps the ledgers: this process alone, or (in `shared.py`) Redis for all gateways."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from gateway.limits.ledger import Ask, Change, Ledger, Quota, Standing

Clock = Callable[[], int]  # milliseconds


class Limiter(Protocol):
    """Begins requests that fit their key's limits."""

    async def ask(self, name: str, quota: Quota, ask: Ask) -> Standing:
        """Whether a request of the key `name` may begin; if so it has, and its end must be told."""

    def tell(self, name: str, change: Change) -> None:
        """What has become of requests that began: tokens used, and what is given back at the end."""


def monotonic_ms() -> int:
    """The time, by a clock that never goes back."""
    return time.monotonic_ns() // 1_000_000


class LocalLimiter:
    """Limits that hold in this process. Each of `gateways` processes gives its share of every limit."""

    def __init__(self, gateways: int = 1, clock: Clock = monotonic_ms) -> None:
        self._gateways = gateways
        self._clock = clock
        self.ledgers: dict[str, Ledger] = {}

    async def ask(self, name: str, quota: Quota, ask: Ask) -> Standing:
        return self.decide(name, quota, ask)

    def decide(self, name: str, quota: Quota, ask: Ask) -> Standing:
        """The same, at once."""
        standing = self._ledger(name).apply(self._clock(), quota.share(self._gateways), Change(), ask)
        return replace(standing, parts=self._gateways)

    def tell(self, name: str, change: Change) -> None:
        self._ledger(name).apply(self._clock(), Quota(), change)

    def _ledger(self, name: str) -> Ledger:
        return self.ledgers.setdefault(name, Ledger())
