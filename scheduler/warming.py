"""Prompts that every worker has in its cache before it counts as ready.

An inner gateway: for every worker that connects, also one that comes back, it asks for one token after each
prompt, on that worker, ahead of all others of the same priority who wait. It does not pass the door, so no
limit holds for it, and its requests are the house's: no tenant pays for them. Where the mirror knew the
prompt's blocks that is a hit and costs next to nothing.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence

import structlog

from batchyard.errors import InvalidRequest
from protos.packing import unpack_i32
from protos.sampling_pb2 import Sampling
from protos.scheduling_pb2 import Submit, WarmPrompt
from scheduler import admission
from scheduler.fairness import Tenant
from scheduler.lane import Lane
from scheduler.request import Request
from scheduler.session import Session

log = structlog.get_logger()

_BEFORE_ALL = -(1 << 62)  # older than any request that comes


class Warming:
    """Knows the prompts, and which worker still lacks which."""

    def __init__(self, session: Session, house: Tenant, cancel: Callable[[Session, int], None]) -> None:
        """`session` is for its requests alone, whose tenant is `house`; `cancel` ends one of them."""
        self._session = session
        self._house = house
        self._cancel = cancel
        self._prompts: dict[tuple[bytes, str], Submit] = {}
        self._numbers = itertools.count()
        self._given: dict[Lane, tuple[int, int]] = {}  # on which stream, and how many
        self._asked: dict[int, Lane] = {}  # by the request's id
        self._blocks: set[bytes] = set()  # digests of full ones, of all prompts

    def add(self, prompts: Iterable[WarmPrompt]) -> None:
        """Notes prompts; `give` does the rest. What was noted already is not noted twice."""
        for prompt in prompts:
            submit = Submit(
                request_id="warm",
                tokens=prompt.tokens,
                prompt_len=len(unpack_i32(prompt.tokens)),
                max_tokens=1,
                sampling=Sampling(top_p=1.0, repetition_penalty=1.0),
                cache_salt=prompt.cache_salt,
            )
            self._prompts.setdefault((prompt.tokens, prompt.cache_salt), submit)

    def left(self, lane: Lane) -> int:
        """How many prompts the worker still lacks."""
        stream, given = self._given.get(lane, (0, 0))
        if stream != lane.tally.streams:
            return len(self._prompts)
        return len(self._prompts) - given + sum(asked is lane for asked in self._asked.values())

    def give(self, lanes: Sequence[Lane]) -> None:
        """Asks each connected worker for what it has not been asked for on this stream."""
        if not self._prompts:
            return
        for lane in lanes:
            stream, given = self._given.get(lane, (0, 0))
            if not lane.takes_requests or (stream, given) == (lane.tally.streams, len(self._prompts)):
                continue
            if stream != lane.tally.streams:
                self.forget(lane)
                given = 0
            for submit in itertools.islice(self._prompts.values(), given, None):
                self._ask(lane, submit)
            self._check_size(lane)
            self._given[lane] = lane.tally.streams, len(self._prompts)

    def forget(self, lane: Lane) -> None:
        """What the worker was asked for so far no longer matters."""
        self._given.pop(lane, None)
        for number in [number for number, asked in self._asked.items() if asked is lane]:
            del self._asked[number]
            self._cancel(self._session, number)

    async def run(self) -> None:
        """Takes the answers until cancelled."""
        while message := await self._session.outbox.get():
            for finished in message.finished:
                self._asked.pop(finished.id, None)

    def _ask(self, lane: Lane, submit: Submit) -> None:
        if lane.worker is None:
            raise AssertionError("not connected")
        try:
            admission.check(submit, [lane.worker])
        except InvalidRequest as error:
            log.warning("warm_prompt_left_out", worker=lane.worker.worker_id, reason=str(error))
            return
        number = next(self._numbers)
        request = Request(
            session=self._session,
            id=number,
            request_id=f"warm-{number}",
            tokens=unpack_i32(submit.tokens),
            prompt_len=submit.prompt_len,
            max_tokens=submit.max_tokens,
            sampling=submit.sampling,
            stop_ids=frozenset(),
            cache_salt=submit.cache_salt,
            arrival=_BEFORE_ALL + number,
            tenant=self._house,
            pinned=True,
        )
        self._session.requests[number] = request
        self._asked[number] = lane
        lane.give(request, lane.load_for(request))
        self._blocks.update(request.digests)

    def _check_size(self, lane: Lane) -> None:
        """Says so where they are too many: each pushes an older one out, and warming up is for nothing."""
        if lane.worker is None or not self._blocks:
            return
        blocks, room = len(self._blocks), lane.worker.num_blocks + lane.worker.num_host_blocks
        if blocks > room:
            log.warning("warm_prompts_exceed_cache", worker=lane.worker.worker_id, blocks=blocks, room=room)
