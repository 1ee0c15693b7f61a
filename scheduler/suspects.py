"""Requests that were running when a worker was lost: who of them is to blame, if anybody is.

A worker can be killed by what it is given: a prompt that drives a kernel out of bounds, a batch that no
memory holds. Whoever gives that request to the next worker loses that one too. But workers also die by
themselves, with many requests on them, and none of these may pay for it. So nobody is blamed before it is
certain:

    in a step that was not answered ──▶ suspect ──past that place──▶ cleared
                                           │
                                           └──TRIED_FROM losses there──▶ on trial: it runs with nobody else
                                                                     ├──past that place──▶ cleared
                                                                     └──lost once more──▶ it fails, alone

The place is a range of its tokens: those that the steps in flight would have computed. What kills workers
does so at the same token each time, so the ranges of its losses have it in common, and it comes to its trial.
A loss further on starts anew; one before says nothing about the place, and does not count. So for anybody
else it takes three accidents within the same few tokens, the last while its worker has nothing else to do.

Trials are held on workers that have nobody; failing that on the one with the fewest rows, which are paused
for it and keep their blocks. Not on the worker that was lost with the suspect last, if there is another: one
that is sick itself proves nothing.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import structlog

from batchyard.errors import InternalError, NanLogits
from protos.packing import unpack_i32
from scheduler.batcher import Batcher, Step
from scheduler.queue import WaitingQueue
from scheduler.request import Request

if TYPE_CHECKING:
    from scheduler.lane import Lane

log = structlog.get_logger()

TRIED_FROM = 2  # losses


@dataclass(frozen=True, slots=True)
class Suspicion:
    """So many workers were lost with a request, all while they computed tokens `start` to `end`."""

    losses: int
    start: int
    end: int
    lane: "Lane"  # the last one


class Suspects:
    """Counts losses, and holds the trials."""

    def __init__(self, waiting: WaitingQueue, fail: Callable[[Request, str], None]) -> None:
        """`waiting` is for those that wait for their trials. `fail` ends a request, and says why."""
        self.waiting = waiting
        self.failed = 0
        self._fail = fail
        self._running: set[Request] = set()
        self._trials: dict[Lane, Request | None] = {}  # on workers set apart; None until nobody else is there
        self._guilty: set[Request] = set()

    def __len__(self) -> int:
        return len(self._running) + len(self.waiting)

    # What happens to requests

    def worker_lost(
        self, lane: "Lane", batcher: Batcher, in_flight: Sequence[Step], why: InternalError
    ) -> None:
        """The steps `in_flight` on `lane` will never be answered. Its requests are about to come back."""
        tried = self._trials.pop(lane, None)
        for row, place in _places(batcher, in_flight).items():
            request = batcher.rows.requests[row]
            if request is None or not batcher.rows.accepting[row]:
                continue
            if isinstance(why, NanLogits) and row not in why.rows:
                continue
            request.suspicion = _suspicion(request.suspicion, place, lane)
            if request is tried and request.suspicion.losses > TRIED_FROM:
                self._guilty.add(request)

    def admitted(self, request: Request) -> None:
        """`request` has a row."""
        if request.suspicion:
            self._running.add(request)

    def answered(self) -> None:
        """A step has been answered. Costs nothing while nobody is suspected."""
        for request in list(self._running):
            suspicion = request.suspicion
            if (
                not suspicion
                or request.row is None
                or request.lane is None
                or not request.session.has(request)
            ):
                self._running.discard(request)
            # The last token that has come back is not computed. What it came with has come back before.
            elif request.lane.tokens_of(request.row) > max(suspicion.end, len(request.tokens)):
                self._running.discard(request)
                request.suspicion = None

    def take(self, request: Request) -> bool:
        """Whether `request`, which comes back from a worker, is not for the queue: it is tried, or was."""
        if request in self._guilty:
            self._guilty.discard(request)
            self.failed += 1
            losses = TRIED_FROM + 1
            log.error("request_failed", request_id=request.request_id, losses=losses)
            self._fail(
                request,
                f"{losses} workers were lost at the same place of this request, the last one while it ran no "
                "other. It is not tried again.",
            )
            return True
        if _awaits_trial(request):
            self.waiting.push(request)
            return True
        return False

    def cancel(self, request: Request) -> bool:
        """`request`, which no worker has, is over. False if it does not wait here."""
        if not _awaits_trial(request):
            return False
        self.waiting.cancel(request)
        return True

    # Trials

    def sets_apart(self, lane: "Lane") -> bool:
        """Whether nobody else may be given to this worker."""
        return lane in self._trials

    def hold_trials(self, lanes: Sequence["Lane"]) -> None:
        """Tries whom it can on `lanes`, the workers that take requests."""
        if not (self._trials or len(self.waiting)):
            return
        for lane in [lane for lane in self._trials if lane not in lanes or self._is_over(lane)]:
            self._next(lane, lanes)
        while (suspect := self.waiting.peek()) and (chosen := self._choose(suspect, lanes)):
            chosen.clear()
            self._trials[chosen] = None
            self._next(chosen, lanes)

    def _is_over(self, lane: "Lane") -> bool:
        request = self._trials[lane]
        return request is None or not (
            request.suspicion and request.lane is lane and request.session.has(request)
        )

    def _next(self, lane: "Lane", lanes: Sequence["Lane"]) -> None:
        suspect = self.waiting.peek()
        if suspect is None or lane not in _fit(suspect, lanes):
            del self._trials[lane]
        elif not lane.idle:
            self._trials[lane] = None
            lane.clear()
        else:
            self._trials[lane] = self.waiting.pop()
            lane.give(suspect, lane.load_for(suspect))

    def _choose(self, suspect: Request, lanes: Sequence["Lane"]) -> "Lane | None":
        free = [lane for lane in _fit(suspect, lanes) if lane not in self._trials]
        if empty := next((lane for lane in free if lane.idle), None):
            return empty
        # One at a time is taken from those who are innocent.
        return None if self._trials else min(free, key=lambda lane: lane.rows_taken, default=None)


def _places(batcher: Batcher, steps: Sequence[Step]) -> dict[int, range]:
    """By row: the tokens that `steps`, the last ones, compute; if it entered with one, all before as well."""
    counts: Counter[int] = Counter()
    entered: set[int] = set()
    for step in steps:
        chunk_rows = unpack_i32(step.batch.chunk_rows).tolist()
        counts.update(dict(zip(chunk_rows, unpack_i32(step.batch.chunk_lens).tolist(), strict=True)))
        counts.update(set(step.sampling.tolist()).difference(chunk_rows))
        entered.update(new.row for new in step.batch.new_rows)
    computed = batcher.rows.computed
    return {
        row: range(0 if row in entered else int(computed[row]) - count, int(computed[row]))
        for row, count in counts.items()
    }


def _suspicion(before: Suspicion | None, place: range, lane: "Lane") -> Suspicion:
    if before is None or before.end <= place.start:
        return Suspicion(1, place.start, place.stop, lane)
    if place.stop <= before.start:
        return replace(before, lane=lane)
    return Suspicion(before.losses + 1, max(before.start, place.start), min(before.end, place.stop), lane)


def _awaits_trial(request: Request) -> bool:
    """Unless a worker has it."""
    return request.suspicion is not None and request.suspicion.losses >= TRIED_FROM


def _fit(suspect: Request, lanes: Sequence["Lane"]) -> Sequence["Lane"]:
    """Where to try it."""
    lost = suspect.suspicion.lane if suspect.suspicion else None
    return [lane for lane in lanes if lane is not lost] or lanes
