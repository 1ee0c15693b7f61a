"""One key's last minute: how much was used in each second of it, and how much is held.

    used       tokens of prompts being read and of answers written, in the second in which that was told
    held       tokens that running requests may still use: reserved when they began, given back at their end
    requests   begun, in each second
    running    answers being generated now

A request begins where `used + held + what it may need` is within the limit. After that a token only moves
from held to used, so `used + held` never exceeds the limit, and neither do the tokens produced in any 60
seconds: those not told yet are still held. It needs no trust in how fast or in what order they are told.

A bucket that is full at first and refills evenly would let twice the limit pass in its first minute; this one
refills a second's use when that second is a minute old. `ledger.lua` is the same for all gateways together.
"""

from dataclasses import dataclass, field
from typing import Literal

WINDOW_S = 60
SLOT_MS = 1000  # use is remembered by the second, and forgotten when all of it is more than a minute old
RUNNING_RETRY_MS = 1000  # nobody knows when a running answer ends

Cause = Literal["", "requests", "tokens", "running"]

_NO_OBSTACLE: tuple[Cause, int] = ("", 0)


@dataclass(frozen=True, slots=True)
class Quota:
    """What a key may have; None is no limit."""

    requests: int | None = None  # begun in any 60 seconds
    tokens: int | None = None  # used in any 60 seconds
    running: int | None = None  # at once

    @property
    def bounds(self) -> bool:
        """Whether there is any limit."""
        return (self.requests, self.tokens, self.running) != (None, None, None)

    def share(self, parts: int) -> "Quota":
        """One of `parts` equal shares, of one at least."""
        requests, tokens, running = (
            None if limit is None else max(1, limit // parts)
            for limit in (self.requests, self.tokens, self.running)
        )
        return Quota(requests, tokens, running)


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request needs to begin."""

    tokens: int  # of its prompts and, at most, of its answers: to be held
    running: int  # answers


@dataclass(frozen=True, slots=True)
class Change:
    """What has become of requests that began. Counts are added."""

    used: int = 0  # tokens; never negative
    held: int = 0  # tokens, mostly negative
    running: int = 0
    requests: int = 0  # begun without being asked for here

    def __add__(self, other: "Change") -> "Change":
        return Change(
            self.used + other.used,
            self.held + other.held,
            self.running + other.running,
            self.requests + other.requests,
        )


@dataclass(frozen=True, slots=True)
class Standing:
    """How a key stands after a call."""

    granted: bool
    tokens: int  # used and held
    requests: int
    running: int
    cause: Cause  # which limit is in the way for longest; empty where granted
    retry_ms: int  # until that limit lets the request begin, if nothing else does meanwhile
    reset_tokens_ms: int  # until nothing counts as used or held any more, if nothing begins meanwhile
    reset_requests_ms: int
    parts: int = 1  # equal shares into which the limits are divided: this is about one of them


@dataclass(slots=True)
class Ledger:
    """The account of one key in one process."""

    used: dict[int, int] = field(default_factory=dict)  # by the second it was told in
    requests: dict[int, int] = field(default_factory=dict)
    held: int = 0
    running: int = 0

    def apply(self, now_ms: int, quota: Quota, change: Change, ask: Ask | None = None) -> Standing:
        """Takes in `change`, and then begins the request that asks if it fits `quota`."""
        slot = now_ms // SLOT_MS
        _forget(self.used, slot - WINDOW_S)
        _forget(self.requests, slot - WINDOW_S)
        _add(self.used, slot, change.used)
        _add(self.requests, slot, change.requests)
        self.held = max(0, self.held + change.held)
        self.running = max(0, self.running + change.running)
        cause, retry_ms = self._obstacle(now_ms, quota, ask) if ask is not None else _NO_OBSTACLE
        granted = ask is not None and not cause
        if granted and ask is not None:
            self.held += ask.tokens
            self.running += ask.running
            _add(self.requests, slot, 1)
        tokens, requests = sum(self.used.values()) + self.held, sum(self.requests.values())
        return Standing(
            granted=granted,
            tokens=tokens,
            requests=requests,
            running=self.running,
            cause=cause,
            retry_ms=retry_ms,
            reset_tokens_ms=_wait(self.used, tokens, quota.tokens, now_ms),
            reset_requests_ms=_wait(self.requests, requests, quota.requests, now_ms),
        )

    def _obstacle(self, now_ms: int, quota: Quota, ask: Ask) -> tuple[Cause, int]:
        cause: Cause = ""
        retry_ms = 0
        if quota.requests is not None:
            over = sum(self.requests.values()) + 1 - quota.requests
            wait = _wait(self.requests, over, quota.requests, now_ms)
            if wait > retry_ms:
                cause, retry_ms = "requests", wait
        if quota.tokens is not None:
            over = sum(self.used.values()) + self.held + ask.tokens - quota.tokens
            wait = _wait(self.used, over, quota.tokens, now_ms)
            if wait > retry_ms:
                cause, retry_ms = "tokens", wait
        if quota.running is not None and self.running + ask.running > quota.running and not cause:
            cause, retry_ms = "running", RUNNING_RETRY_MS
        return cause, retry_ms


def _wait(used: dict[int, int], over: int, limit: int | None, now_ms: int) -> int:
    """Milliseconds until `over` of what is counted no longer is; 0 where nothing is over.

    Exact for what was used. What is held is taken to be used at the rate of the limit, from now on, and to
    count for a minute after that: the requests that hold it may end earlier, or run more slowly.
    """
    if over <= 0:
        return 0
    for slot in sorted(used):
        over -= used[slot]
        if over <= 0:
            return (slot + WINDOW_S + 1) * SLOT_MS - now_ms
    used_up_ms = -(-over * WINDOW_S * 1000 // limit) if limit else 0
    return used_up_ms + (now_ms // SLOT_MS + WINDOW_S + 1) * SLOT_MS - now_ms


def _forget(counts: dict[int, int], oldest: int) -> None:
    """Drops what is in seconds before `oldest`: the one a minute ago still counts, for part of it does."""
    for slot in [slot for slot in counts if slot < oldest]:
        del counts[slot]


def _add(counts: dict[int, int], slot: int, count: int) -> None:
    if count:
        counts[slot] = counts.get(slot, 0) + count
