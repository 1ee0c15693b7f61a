"""Where the time of a request went, as far as it is known here.

tokenize   text to tokens
limits     asking whether the key may
queue      until it had a row on a worker          ┐ told by the scheduler when the request has ended;
prefill    until the first token                   │ `wait` stands for both where it did not
decode     until the last token                    │
paused     without a row, after it had one         ┘ drawn last, whenever it was
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from gateway.console.journal import Segment
from protos.scheduling_pb2 import Timing


class Waterfall:
    """Takes down when what happened to one request; in the seconds of `time.perf_counter`."""

    def __init__(self, arrived: float) -> None:
        self._arrived = arrived
        self._segments: list[Segment] = []
        self._asked: float | None = None

    @contextmanager
    def segment(self, name: str) -> Iterator[None]:
        """What happens in this block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            end = time.perf_counter()
            self._segments.append(self._between(name, start, end))
            if self._asked is not None:
                self._asked = end

    def asked(self) -> None:
        """From now on the answer is waited for, but for segments to come."""
        self._asked = time.perf_counter()

    def segments(
        self, tokens: tuple[float, float] | None, ended: float, timing: Timing | None
    ) -> tuple[Segment, ...]:
        """All of them, in order. `tokens` are the times of the first and the last, None where none came."""
        segments = list(self._segments)
        if self._asked is not None:
            first, last = tokens or (ended, ended)
            if timing is None:
                segments.append(self._between("wait", self._asked, first))
                segments.append(self._between("decode", first, last))
            else:
                segments += self._told(self._asked, first, last, timing)
        return tuple(segment for segment in segments if segment.length > 0)

    def _told(self, asked: float, first_token: float, last: float, timing: Timing) -> list[Segment]:
        queued = asked + (timing.queued_ms - timing.requeued_ms) / 1e3
        prefilled = queued + timing.prefill_ms / 1e3  # of all its rows: after the first token, maybe
        decodes = max(first_token, prefilled)
        paused = max(decodes, last - timing.requeued_ms / 1e3)
        return [
            self._between("queue", asked, queued),
            self._between("prefill", queued, prefilled),
            self._between("decode", decodes, paused),
            self._between("paused", paused, last),
        ]

    def _between(self, name: str, start: float, end: float) -> Segment:
        return Segment(name, round(1e3 * (start - self._arrived), 2), round(1e3 * (end - start), 2))
