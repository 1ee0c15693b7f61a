"""The scheduler: requests in, steps out, tokens back. A thin loop over queue, lanes and sessions."""

import asyncio
import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import structlog

from batchyard.errors import InvalidRequest
from prefix_cache.mirror import PrefixMirror
from protos.packing import unpack_i32
from protos.scheduling_pb2 import (
    FINISH_REASON_FAILED,
    FINISH_REASON_TIMEOUT,
    REFUSAL_REASON_INVALID,
    REFUSAL_REASON_OVERLOADED,
    REFUSAL_REASON_UNAVAILABLE,
    Description,
    Submit,
    WarmPrompt,
)
from scheduler import admission
from scheduler.connection import Connector, LaneOptions
from scheduler.deadlines import Deadlines
from scheduler.fairness import Tenants
from scheduler.fleet import Fleet
from scheduler.lane import Lane
from scheduler.peak import AnswerLengths
from scheduler.placement import LeastCost, Placement
from scheduler.preemption import Cause
from scheduler.queue import WaitingQueue
from scheduler.request import Request
from scheduler.request_times import RequestTimes
from scheduler.session import Session, Sessions
from scheduler.shedding import BOUNDLESS, Door, QueueLimits
from scheduler.state import describe
from scheduler.suspects import Suspects
from scheduler.tiers import HitTokens
from scheduler.tracing import RequestSpans
from scheduler.transport import Transport
from scheduler.warming import Warming

log = structlog.get_logger()

HASHED_AT_ONCE = 512  # blocks of a prompt: about 0.3 ms
_SETTLING_S = 5.0  # from becoming active on, in which requests wait for workers to be connected


class Scheduler:
    """Steps every worker. Single-threaded: everything happens on one event loop, in small turns."""

    def __init__(
        self,
        transports: Sequence[Transport],
        options: LaneOptions,
        spans: RequestSpans,
        mirror: PrefixMirror | None = None,
        placement: Placement | None = None,
        limits: QueueLimits = BOUNDLESS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` gives seconds, as the event loop's does."""
        self.sessions = Sessions()
        self.tenants = Tenants()
        self.door = Door(limits, clock)
        self.waiting = WaitingQueue(self.tenants, clock)  # not yet given to a worker
        self.preempted_for: Counter[Cause] = Counter()
        self.timeouts = 0
        self.prompt_tokens = 0  # of requests that got a row
        self.hits = HitTokens()  # of these, found in the cache
        self.answers = AnswerLengths()
        self.times = RequestTimes(clock)
        self.suspects = Suspects(WaitingQueue(self.tenants, clock), self._fail)
        self.fleet = Fleet(self._lane_to, self._forget_lane)
        self.mirror = mirror
        self._warming = Warming(self.sessions.open(), self.tenants.house, self.cancel)
        self._spans = spans
        self._placement = placement or LeastCost()
        self._connector = Connector(options, self.sessions, self, self.answers, self.times, mirror)
        self._clock = clock
        self._deadlines = Deadlines(clock, self._expire)
        self._arrivals = itertools.count()
        self._woken = False
        self._active_since = -math.inf
        for transport in transports:
            self.fleet.add(transport)

    @property
    def lanes(self) -> Sequence[Lane]:
        """To every worker that is known."""
        return self.fleet.lanes

    @property
    def preemptions(self) -> int:
        """How often a request lost its row to others."""
        return self.preempted_for.total()

    async def run(self) -> None:
        """Serves until cancelled."""
        self._active_since = self._clock()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.fleet.run())
            group.create_task(self._warming.run())
            if self.mirror:
                group.create_task(self.mirror.run())

    # What gateways ask

    def submit(self, session: Session, submit: Submit) -> None:
        """Takes a request, or refuses it with a reason."""
        workers = self.fleet.expected()
        if not workers and not submit.accepted and self._clock() - self._active_since > _SETTLING_S:
            self.door.turned_away(REFUSAL_REASON_UNAVAILABLE)
            session.refused(submit.id, REFUSAL_REASON_UNAVAILABLE, "no worker is connected")
        else:
            try:
                admission.check(submit, workers)
            except InvalidRequest as error:
                self.door.turned_away(REFUSAL_REASON_INVALID)
                session.refused(submit.id, REFUSAL_REASON_INVALID, str(error))
            else:
                self._receive(session, submit)
        session.flush()

    def cancel(self, session: Session, request_id: int) -> None:
        """Forgets a request; unknown and finished ones are ignored."""
        if request := session.requests.pop(request_id, None):
            self._end(request)

    def close(self, session: Session) -> None:
        """A gateway is gone, and its requests with it."""
        for request in self.sessions.close(session):
            self._end(request)

    def warm(self, prompts: Iterable[WarmPrompt]) -> None:
        """Every worker is to have these prompts in its cache before it counts as ready."""
        self._warming.add(prompts)
        self._wake()

    def keep(self, trace_ids: Sequence[int]) -> None:
        """Everybody is to export these traces, though they were not sampled."""
        self._spans.keep(trace_ids)
        for lane in self.lanes:
            lane.keep(trace_ids)
        self._wake()

    def describe(self) -> Description:
        """The state now, but for tenants."""
        waiting = len(self.waiting) + len(self.suspects.waiting)
        return describe(self.lanes, waiting, round(self.door.size.tokens), self._warming)

    # What the lanes tell

    def admitted(self, request: Request, cached_tokens: int) -> None:
        """`request` has a row."""
        if not request.started:
            request.started = True
            self.door.left(request)
            self.times.began(request)
            self.prompt_tokens += request.prompt_len
            self.hits.add(cached_tokens, request.loaded)
        self.suspects.admitted(request)

    def preempted(self, request: Request, cause: Cause) -> None:
        """`request` has lost its row, and will wait again."""
        self.preempted_for[cause] += 1
        log.debug("preempted", request_id=request.request_id, cause=cause.value, times=request.preemptions)

    def _lane_to(self, transport: Transport) -> Lane:
        given = WaitingQueue(self.tenants, self._clock)
        return Lane(
            transport,
            self._connector,
            given,
            self.suspects,
            self._wake,
            self._take_back,
            self.fleet.is_taken,
            self._clock,
        )

    def _forget_lane(self, lane: Lane) -> None:
        self._warming.forget(lane)

    def _take_back(self, requests: list[Request]) -> None:
        for request in requests:
            request.lane = None
            if not self.suspects.take(request):
                self.waiting.push(request)

    # The loop

    def _wake(self) -> None:
        """Lets `_turn` run soon, once for everything that happens in this turn of the event loop."""
        if not self._woken:
            self._woken = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._woken = False
        self.fleet.welcome()
        lanes = [lane for lane in self.lanes if lane.takes_requests]
        self.suspects.hold_trials(lanes)
        lanes = [lane for lane in lanes if not self.suspects.sets_apart(lane)]
        self._warming.give(lanes)
        self._place(lanes)
        for lane in self.lanes:
            while lane.step():
                pass

    def _place(self, lanes: Sequence[Lane]) -> None:
        """Gives waiting requests to `lanes`, in order, as long as one is chosen for them."""
        while lanes and (request := self.waiting.peek()):
            if not self._hashed(request, lanes[0]):
                self._wake()  # the rest of it in the next turn, so that steps come in between
                return
            chosen = self._placement.choose(request, lanes)
            if chosen is None:
                return
            lane, load = chosen
            lane.give(self.waiting.pop(), load)

    def _hashed(self, request: Request, lane: Lane) -> bool:
        """Hashes some of `request`, as workers like that of `lane` want it; whether nothing is left."""
        if not (self._connector.options.caching and lane.worker) or request.reads_prompt_logits:
            return True
        return request.hash_some(lane.worker.block_size, HASHED_AT_ONCE)

    # Requests come and go

    def _receive(self, session: Session, submit: Submit) -> None:
        if submit.accepted:
            self._enter(session, submit)
            self._wake()
            return
        for request in self.door.to_shed(submit):
            message = "The server is full, and requests of a higher priority came."
            wait = self.door.rate.seconds_for(self.door.size)
            request.session.refused(request.id, REFUSAL_REASON_OVERLOADED, message, wait)
            self.door.shed += 1
            self._end(request, "shed")
            request.session.flush()
        if refusal := self.door.ask(submit):
            session.refused(submit.id, refusal.reason, refusal.message, refusal.retry_after_s)
        else:
            self._enter(session, submit)
            self._wake()

    def _enter(self, session: Session, submit: Submit) -> None:
        now = self._clock()
        request = Request(
            session=session,
            id=submit.id,
            request_id=submit.request_id,
            tokens=unpack_i32(submit.tokens),
            prompt_len=submit.prompt_len,
            max_tokens=submit.max_tokens,
            sampling=submit.sampling,
            stop_ids=frozenset(unpack_i32(submit.sampling.stop_token_ids).tolist()),
            cache_salt=submit.cache_salt,
            arrival=next(self._arrivals),
            tenant=self.tenants.arriving(submit.tenant, submit.weight),
            priority=-submit.priority,
            arrived=now,
            timeline=self._spans.timeline(submit, int(self.door.size.requests)),
            deadline=now + submit.timeout_ms / 1000 if submit.timeout_ms else math.inf,
        )
        session.requests[request.id] = request
        if len(request.tokens) > request.prompt_len:
            request.goes_on()
        else:
            self.door.entered(request)
        self.waiting.push(request)
        if submit.timeout_ms:
            self._deadlines.add(request)

    def _expire(self, request: Request) -> None:
        self.timeouts += 1
        request.session.finished(request, FINISH_REASON_TIMEOUT)
        self._end(request)
        request.session.flush()

    def _fail(self, request: Request, why: str) -> None:
        """`request`, which nobody has any more, is over."""
        self.door.left(request)
        request.session.finished(request, FINISH_REASON_FAILED, error=why)
        request.session.flush()

    def _end(self, request: Request, why: str = "cancelled") -> None:
        request.timeline.end(why)
        self.door.left(request)
        if request.lane:
            request.lane.end(request)
        elif not self.suspects.cancel(request):
            self.waiting.cancel(request)
        self._wake()
