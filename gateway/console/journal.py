"""What a gateway remembers of the requests it has answered, for people who look: never what they say."""

import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from gateway.console.latencies import Counts, Latencies

_KEPT = 100  # requests


class Segment(NamedTuple):
    """A part of a request's time; `start` and `length` in milliseconds, from its arrival on."""

    name: str
    start: float
    length: float


class RequestRecord(BaseModel):
    """One request that has been answered. Times are in milliseconds; `arrived` is since 1970."""

    model_config = ConfigDict(frozen=True)

    id: str
    tenant: str
    model: str
    route: str
    status: int | str
    error: str | None
    arrived: float
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    ttft: float | None
    duration: float
    segments: tuple[Segment, ...]
    timing: dict[str, float | int | str]  # the scheduler's account, as in the log
    trace_id: str  # empty where it is not traced


class Remembered(NamedTuple):
    """What one gateway remembers, or several together: requests, the newest first, and latencies."""

    requests: Sequence[RequestRecord]
    ttft: Counts
    itl: Counts


class Journal:
    """The last requests, and the latencies of the last minute."""

    def __init__(self) -> None:
        self._requests: deque[RequestRecord] = deque(maxlen=_KEPT)
        self._ttft = Latencies()
        self._itl = Latencies()

    def first_token(self, tenant: str, seconds: float, now: float) -> None:
        """The first token of an answer has come. `now`, here and below, is of `time.perf_counter`."""
        self._ttft.observe(tenant, seconds, now)

    def next_token(self, tenant: str, seconds: float, now: float) -> None:
        """So long after the one before."""
        self._itl.observe(tenant, seconds, now)

    def answered(self, record: RequestRecord) -> None:
        """A request has been answered."""
        self._requests.append(record)

    def remembered(self) -> Remembered:
        """All of it, now."""
        now = time.perf_counter()
        return Remembered(list(self._requests)[::-1], self._ttft.counts(now), self._itl.counts(now))


def together(several: Sequence[Remembered]) -> Remembered:
    """What several gateways remember, as if it were one."""
    requests = sorted(
        (record for each in several for record in each.requests),
        key=lambda record: record.arrived + record.duration,
        reverse=True,
    )
    ttft, itl = Counts(), Counts()
    for each in several:
        ttft.update(each.ttft)
        itl.update(each.itl)
    return Remembered(requests[:_KEPT], ttft, itl)
