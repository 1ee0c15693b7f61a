"""Composes the steps of one worker: who computes how many tokens, in which blocks.

There are no phases. A request is `computed` tokens chasing `known` tokens under one budget per step: rows
that decode first, then prompts, those in the middle of theirs and those that wait in one order: by priority,
then by what their tenant has been served (docs/scheduling.md). Beside rows that decode, prompts get no more
of it than `chunking` says, so that no step takes long. A row can be preempted: it loses its blocks, keeps its
tokens and waits for its turn again.

Equal beginnings are computed once, however close together their requests come. A block can be shared from the
moment its last token is in a step that is being composed, even by rows of that step (protos/step.proto says
why). And a tenant never has a second row that could begin what a first one is in the middle of: among its
rows of one priority budget goes by arrival, so one that does not reach its prompt's end leaves nothing for a
newcomer. Who waits is therefore never waiting for a certain row, and nothing is owed when that row is
cancelled or lost.

Lengths are known ahead, so steps are composed without waiting for the answers of those before. Only a stop
token is learned late; what a row samples after it is dropped.
"""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from batchyard.errors import ProtocolError
from protos.packing import pack_i32
from protos.step_pb2 import Moved, NewRow, StepBatch
from scheduler.advances import Advances
from scheduler.block_pool import BlockPool
from scheduler.chunking import prompt_budget
from scheduler.entrance import Entrance, Room
from scheduler.host_pool import HostPool
from scheduler.move_costs import MoveCosts
from scheduler.notices import Notices
from scheduler.peak import AnswerLengths, PeakMemory
from scheduler.preemption import Cause, Victims
from scheduler.prompt_log import PromptLog
from scheduler.queue import WaitingQueue
from scheduler.request import Request
from scheduler.rows import Rows
from scheduler.sharing import Sharing
from scheduler.tiers import Tiers
from scheduler.timeline import Loss
from scheduler.urgency import Urgency


@dataclass(frozen=True, slots=True)
class Step:
    """A step that was sent: its message, the rows that will sample in it [n], its size, and when it left."""

    batch: StepBatch
    sampling: npt.NDArray[np.int64]
    num_tokens: int
    num_prompt_tokens: int  # of these
    read: Sequence[int] = ()  # rows whose prompts end in it
    sent_at: float = field(default_factory=time.monotonic)

    @property
    def num_rows(self) -> int:
        """Rows that took part: one token each where they decode, a chunk each where they prefill."""
        return self.num_tokens - self.num_prompt_tokens + len(self.batch.chunk_rows) // 4

    @property
    def age_us(self) -> float:
        """Microseconds since it was sent."""
        return (time.monotonic() - self.sent_at) * 1e6


class Admissions(Protocol):
    """Who is told when a request gets or loses a row."""

    def admitted(self, request: Request, cached_tokens: int) -> None: ...

    def preempted(self, request: Request, cause: Cause) -> None: ...


class Batcher:
    """Owns the rows and blocks of one worker for as long as its stream lives."""

    def __init__(
        self,
        rows: Rows,
        pool: BlockPool,
        budget: int,
        *,
        caching: bool,
        admissions: Admissions,
        calm_chunk_tokens: int = 0,
        num_host_blocks: int = 0,
        answers: AnswerLengths | None = None,
    ) -> None:
        """`budget` is the most tokens in a step, at least one for every row; see `chunking` for calm ones.

        `answers` may be shared.
        """
        self.rows = rows
        self.pool = pool
        self.budget = budget
        self.tiers = Tiers(
            pool,
            HostPool(num_host_blocks if caching else 0),
            MoveCosts(rows.block_size, budget),
            # What two steps can fill; not so much that a small cache is in both tiers.
            reserve=min(2 * -(-budget // rows.block_size), pool.num_blocks // 4),
        )
        self.sent = 0  # number of the last step composed
        self.answered = 0  # number of the last step answered
        self.answers = answers or AnswerLengths()
        self.prompts = PromptLog()
        self.notices = Notices()
        self.entrance = Entrance(rows, self.tiers, PeakMemory(rows, pool, self.answers), caching=caching)
        self.sharing = Sharing(rows, pool, caching=caching)
        self._admissions = admissions
        self._calm = calm_chunk_tokens
        self._victims = Victims(rows, budget)
        self._urgency = Urgency(rows.max_rows)
        self._advances = Advances(rows)
        self._prefilling: list[int] = []
        self._departures: deque[tuple[int, int]] = deque()  # (fence, row)

    @property
    def backlog(self) -> int:
        """Prompt tokens in rows that no step has computed yet."""
        rows = self._prefilling
        return int((self.rows.known[rows] - self.rows.computed[rows]).sum()) if rows else 0

    @property
    def running(self) -> list[int]:
        """Rows whose requests go on."""
        return np.flatnonzero(self.rows.decoding).tolist() + self._prefilling

    # Composing

    def compose(self, waiting: WaitingQueue) -> Step | None:
        """The next step, or None when there is nothing to do or blocks must come back first."""
        self.entrance.return_arrived(waiting)
        if head := waiting.peek():
            self._make_way(head)
        preemptions = len(self._departures)
        grown = self._grow_decodes()
        if grown is None:
            return None
        batch = StepBatch(step=self.sent + 1)
        decodes = np.flatnonzero(self.rows.decoding)
        self._advances.step(decodes)
        self.rows.computed[decodes] += 1
        self.rows.known[decodes] += 1
        # Who just lost a row must not be overtaken.
        admitting = len(self._departures) == preemptions
        prompts = prompt_budget(self.budget, len(decodes), self.backlog + waiting.work, self._calm)
        chunks = self._fill(waiting, prompts, batch, admitting=admitting)
        self.tiers.save_ahead()
        if not (len(decodes) or chunks or self.notices or self.tiers.ordered):
            return None
        self.sent += 1
        self._pack(batch, grown, chunks)
        return self._depart_full(batch, decodes, chunks)

    def _grow_decodes(self) -> list[tuple[int, int]] | None:
        """A block for each decoding row whose last one is full; None while fenced blocks must be awaited."""
        rows, pool = self.rows, self.pool
        while True:
            decodes = np.flatnonzero(rows.decoding)
            full = decodes[rows.computed[decodes] == rows.num_blocks[decodes] * rows.block_size]
            if len(full) <= pool.available:
                break
            if len(full) <= pool.available + pool.fenced + self.tiers.in_motion:
                return None
            self._preempt(self._victims.for_memory(self.running), Cause.MEMORY)
        grown = list(zip(full.tolist(), pool.allocate(len(full)), strict=True))
        for row, block in grown:
            rows.grow(row, block)
        return grown

    def _fill(
        self, waiting: WaitingQueue, budget: int, batch: StepBatch, *, admitting: bool
    ) -> list[tuple[int, int]]:
        """Chunks (row, tokens) of prompts: of rows in the middle of theirs, of requests that get a row."""
        chunks: list[tuple[int, int]] = []
        given = 0
        prefilling = deque(sorted(self._prefilling, key=self._place))
        while head := self._next_prompt(prefilling, waiting if admitting else None):
            most = self._urgency.prompt_tokens(head.priority, batch.step, budget) - given
            if most <= 0:  # for all who follow, too
                break
            if head.row is not None:
                row = prefilling.popleft()
            else:
                spare = self._urgency.spare_rows(head.priority, batch.step)
                room = self.entrance.next(waiting, self.running, batch.step, spare)
                if room is None:
                    admitting = False
                    continue
                row = self._admit(room, batch)
            chunks.append(self._take_chunk(row, most))
            given += chunks[-1][1]
        return chunks

    def _next_prompt(self, prefilling: deque[int], waiting: WaitingQueue | None) -> Request | None:
        """The first of both; of equals, the one that has a row."""
        row = self._request(prefilling[0]) if prefilling else None
        head = waiting.peek() if waiting else None
        if row and head:
            return row if self._turn(row) <= self._turn(head) else head
        return row or head

    def _make_way(self, head: Request) -> None:
        """Pauses rows for `head`, the first that waits, as far as it may ask for that."""
        lower = self._victims.for_priority(head, self.running)
        while lower and not self._has_room(head, coming=True):
            self._preempt(lower.pop(), Cause.PRIORITY)
        # One a step, whatever is coming: what leaves of its own accord was not enough so far.
        if self._victims.owe(head, self._advances.tenants) and not self._has_room(head, coming=False):
            row = self._victims.for_fairness(head, self.running)
            if row is not None:
                self._preempt(row, Cause.FAIRNESS)

    def _has_room(self, head: Request, *, coming: bool) -> bool:
        """Whether `head` fits; with what is `coming`, once all have left that are leaving."""
        rows = len(self._departures) if coming else 0
        blocks = self.pool.fenced + self.tiers.in_motion if coming else 0
        return self.entrance.has_room(head, self.running, rows, blocks)

    def _take_chunk(self, row: int, budget: int) -> tuple[int, int]:
        rows = self.rows
        length = min(budget, int(rows.known[row] - rows.computed[row]))
        rows.computed[row] += length
        request = self._request(row)
        request.timeline.chunks += 1
        request.tenant.charge(max(0, min(length, int(rows.computed[row]) - request.paid)))
        if rows.computed[row] == rows.known[row]:  # reaches the end of what is known: samples, then decodes
            self._prefilling.remove(row)
            rows.known[row] += 1
            rows.decoding[row] = True
            self._advances.begins_to_decode(row)
        # In step order its blocks are full before anything sent later can read them.
        self.sharing.register_full([row], self.sent + 1)
        return row, length

    def _pack(self, batch: StepBatch, grown: list[tuple[int, int]], chunks: list[tuple[int, int]]) -> None:
        self.notices.pack(batch)
        batch.grown_rows = pack_i32([row for row, _ in grown])
        batch.grown_blocks = pack_i32([block for _, block in grown])
        batch.chunk_rows = pack_i32([row for row, _ in chunks])
        batch.chunk_lens = pack_i32([length for _, length in chunks])
        self.tiers.pack(batch)

    def _depart_full(
        self, batch: StepBatch, decodes: npt.NDArray[np.int64], chunks: list[tuple[int, int]]
    ) -> Step:
        """Rows that sample their last token in this step take no part in the next."""
        finished_prompts = [row for row, _ in chunks if self.rows.decoding[row]]
        sampling = np.concatenate([decodes, np.array(finished_prompts, np.int64)])
        for row in sampling[self.rows.known[sampling] >= self.rows.limit[sampling]].tolist():
            self._leave(row)
        prompts = sum(length for _, length in chunks)
        return Step(batch, sampling, len(decodes) + prompts, prompts, finished_prompts)

    # Admitting

    def _admit(self, room: Room, batch: StepBatch) -> int:
        request, cached = room.request, room.cached
        self.pool.acquire(cached)
        blocks = cached + self.pool.allocate(room.fresh)
        computed = len(cached) * self.rows.block_size
        from_host = min(request.loaded, computed)
        if not request.paid:
            worth = self.tiers.costs.tokens_worth(from_host // self.rows.block_size)
            request.tenant.charge(min(from_host, worth))
        row = self.rows.take(request, blocks, computed)
        request.got_row(row, computed - from_host, from_host, room.looked_ns, self.prompts)
        self._advances.took(row)
        self._urgency.began(request.priority, batch.step)
        self._prefilling.append(row)
        self._admissions.admitted(request, computed)
        batch.new_rows.append(
            NewRow(
                row=row,
                request_id=request.request_id,
                tokens=pack_i32(request.tokens),
                prompt_len=request.prompt_len,
                computed=computed,
                block_ids=pack_i32(blocks),
                sampling=request.sampling,
                traceparent=request.timeline.traceparent,
            )
        )
        return row

    # Leaving

    def end(self, row: int) -> None:
        """The request in `row` is over; what it still samples is dropped."""
        self.rows.accepting[row] = False
        if self._runs(row):
            self._leave(row)

    def _preempt(self, row: int, cause: Cause) -> None:
        request = self._request(row)
        request.timeline.lost_row(Loss.PREEMPTED, cause.value)
        self._leave(row)
        self._admissions.preempted(request, cause)

    def _leave(self, row: int) -> None:
        """The row takes no part in steps to come. It and its blocks are reusable behind the fence."""
        self._stop(row)
        self.sharing.leave(row, self.sent)
        self.pool.release(self.rows.blocks_of(row), self.sent)
        self._departures.append((self.sent, row))
        self.notices.freed(row)
        if self.answered == self.sent:
            self.pool.settle(self.answered)

    def _stop(self, row: int) -> None:
        request = self._request(row)
        self._advances.left(row)
        request.paid = max(request.paid, int(self.rows.computed[row]))
        if self.rows.decoding[row]:
            self.rows.decoding[row] = False
        else:
            self._prefilling.remove(row)

    def settle(self, step: int) -> list[Request]:
        """Step `step` has been answered and its tokens taken: the preempted requests that can wait again."""
        self.answered = step
        self.pool.settle(step)
        return self.settled()

    def moved(self, news: Moved) -> None:
        """The worker says which moves are done. Raises ProtocolError for moves that nobody asked for."""
        if max(news.saved, news.loaded) > self.sent:
            raise ProtocolError(
                f"moves of step {max(news.saved, news.loaded)} are done, which was never sent"
            )
        self.tiers.moved(news, self.sent)
        self.pool.settle(self.answered)

    def settled(self) -> list[Request]:
        """Vacates the rows whose fence has passed. Those whose requests go on were preempted."""
        back = []
        while self._departures and self._departures[0][0] <= self.answered:
            row = self._departures.popleft()[1]
            if self.rows.accepting[row]:
                back.append(self._give_back(row))
            self._request(row).row = None
            self.rows.vacate(row)
            self.sharing.vacate(row)
        return back

    def clear(self) -> list[Request]:
        """Everybody leaves. Rows come back behind their fences (`settled`); who has none is returned."""
        for row in self.running:
            self._preempt(row, Cause.TRIAL)
        return self._release_aside()

    def evacuate(self) -> list[Request]:
        """The worker is gone: every request that was not over, with all tokens that came back."""
        for row in self.running:
            self._stop(row)
        rows = np.flatnonzero(self.rows.accepting).tolist()
        return self._release_aside() + [self._give_back(row) for row in rows]

    def _release_aside(self) -> list[Request]:
        aside = self.entrance.aside
        for request in aside:
            self.entrance.forget(request)
            request.loaded = 0
        return aside

    def _give_back(self, row: int) -> Request:
        request = self._request(row)
        request.lost_row(self.rows.tokens_of(row))
        return request

    def _runs(self, row: int) -> bool:
        return bool(self.rows.decoding[row]) or row in self._prefilling

    def _place(self, row: int) -> tuple[tuple[int, float], int]:
        request = self._request(row)
        return self._turn(request), request.arrival

    def _turn(self, request: Request) -> tuple[int, float]:
        return -request.priority, request.tenant.counter

    def _request(self, row: int) -> Request:
        request = self.rows.requests[row]
        if request is None:
            raise AssertionError(f"row {row} is vacant")
        return request
