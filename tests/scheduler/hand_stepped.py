"""A batcher and a simulated worker, stepped by hand."""

import itertools
import time
from collections import Counter, deque

import numpy as np

from protos.packing import unpack_i32, unpack_u32
from protos.sampling_pb2 import Sampling
from scheduler.batcher import Batcher
from scheduler.block_pool import BlockPool
from scheduler.fairness import Tenants
from scheduler.peak import AnswerLengths
from scheduler.queue import WaitingQueue
from scheduler.request import Request
from scheduler.request_times import RequestTimes
from scheduler.results import ResultHandler
from scheduler.rows import Rows
from scheduler.session import Sessions
from scheduler.tiers import HitTokens
from tests.scheduler.simulated_worker import VOCAB, SimulatedWorker


class Bench:
    """With `depth` steps in flight. Every check of the books that there is runs after every event."""

    def __init__(self, depth=2, caching=True, calm=0, **shape):
        self.simulated = SimulatedWorker(**shape)
        self.caching = caching
        self.calm = calm
        self.sessions = Sessions()
        self.session = self.sessions.open()
        self.tenants = Tenants()
        self.lengths = AnswerLengths()
        for _ in range(400):  # so answers are taken to be short, and rows are preempted when they are not
            self.lengths.observe(1)
        self.waiting = WaitingQueue(self.tenants, lambda: 0.0)
        self.depth = depth
        self.ids = itertools.count()
        self.hits = {}
        self.found = HitTokens()
        self.preemptions = 0
        self.causes = Counter()
        self.connect()

    def connect(self):
        worker = self.simulated.describe()
        rows = Rows(worker.max_rows, worker.max_model_len, worker.block_size)
        pool = BlockPool(worker.num_blocks, unpack_u32(worker.block_generations).tolist())
        self.batcher = Batcher(
            rows,
            pool,
            worker.max_batched_tokens,
            caching=self.caching,
            admissions=self,
            calm_chunk_tokens=self.calm,
            num_host_blocks=worker.num_host_blocks,
            answers=self.lengths,
        )
        self.handler = ResultHandler(self.batcher, self.sessions, VOCAB, RequestTimes(time.monotonic))
        self.in_flight = deque()

    def lose_worker(self):
        """The steps in flight are executed, but nobody hears of it."""
        for step in self.in_flight:
            self.simulated.execute(step.batch)
        self._requeue(self.batcher.evacuate())
        self.simulated.reset()
        self.connect()

    def admitted(self, request, cached_tokens):
        self.hits.setdefault(request.id, cached_tokens)
        self.found.add(cached_tokens, request.loaded)

    def preempted(self, request, cause):
        self.preemptions += 1
        self.causes[cause] += 1

    def add(self, prompt, max_tokens, stop_ids=(), salt="", tenant="", weight=1.0, priority=0):
        """`tenant` None: the house."""
        id = next(self.ids)
        request = Request(
            session=self.session,
            id=id,
            request_id=str(id),
            tokens=np.array(prompt, np.int32),
            prompt_len=len(prompt),
            max_tokens=max_tokens,
            sampling=Sampling(),
            stop_ids=frozenset(stop_ids),
            cache_salt=salt,
            arrival=id,
            tenant=self.tenants.house if tenant is None else self.tenants.arriving(tenant, weight),
            priority=priority,
        )
        self.session.requests[id] = request
        self.waiting.push(request)
        return request

    def send(self):
        if len(self.in_flight) >= self.depth:
            return False
        step = self.batcher.compose(self.waiting)
        self._requeue(self.batcher.settled())
        if step is not None:
            self.simulated.receive(step.batch)
            self.in_flight.append(step)
            self.check()
        return step is not None

    def answer(self):
        step = self.in_flight.popleft()
        result = self.simulated.execute(step.batch)
        self.handler.apply(step, result)
        self._requeue(self.batcher.settle(result.step))
        self.sessions.flush()
        self.check()

    @property
    def moving(self):
        return bool(self.simulated.saves or self.simulated.loads)

    def move(self, loads):
        if self.simulated.loads if loads else self.simulated.saves:
            self.batcher.moved(self.simulated.move(loads).moved)
            self.check()

    def cancel(self, request):
        self.session.requests.pop(request.id)
        if request.row is not None:
            self.batcher.end(request.row)
        elif not self.batcher.entrance.forget(request):
            self.waiting.cancel(request)

    def run(self):
        for _ in range(10_000):
            while self.send():
                pass
            if not self.in_flight and not self.moving:
                break
            self.move(loads=False)
            self.move(loads=True)
            if self.in_flight:
                self.answer()
        assert not self.in_flight
        assert not self.batcher.entrance.aside
        assert not self.waiting.peek()
        assert not self.session.requests

    def check(self):
        self.batcher.pool.check()
        self.batcher.tiers.host.check()

    def check_idle(self):
        self.check()
        assert self.batcher.rows.taken == 0
        assert self.batcher.pool.held == 0
        assert not self.simulated.rows

    def answers(self):
        out, ends = {}, {}
        while not self.session.outbox.empty():
            message = self.session.outbox.get_nowait()
            for id, token in zip(np.frombuffer(message.ids, "<u8"), unpack_i32(message.tokens), strict=True):
                assert int(id) not in ends, "a token after the end"
                out.setdefault(int(id), []).append(int(token))
            for end in message.finished:
                ends[end.id] = end
        return out, ends

    def _requeue(self, requests):
        for request in requests:
            self.waiting.push(request)
