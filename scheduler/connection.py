"""What a lane has for as long as one stream to its worker lives, and how it comes to it."""

import time
from collections import deque
from dataclasses import dataclass

import structlog

from batchyard.errors import ProtocolError
from prefix_cache.mirror import PrefixMirror, key_of
from protos.packing import unpack_u32
from protos.step_pb2 import StepResult, WorkerDescription
from scheduler.batcher import Admissions, Batcher, Step
from scheduler.block_pool import BlockPool
from scheduler.outlook import Outlook
from scheduler.pacing import Pacing
from scheduler.peak import AnswerLengths
from scheduler.queue import WaitingQueue
from scheduler.remembering import Remembering
from scheduler.request_times import RequestTimes
from scheduler.results import ResultHandler
from scheduler.rows import Rows
from scheduler.session import Sessions
from scheduler.transport import StepStream, Transport

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class LaneOptions:
    """How a lane steps its worker."""

    steps_in_flight: int  # at least; 1 is synchronous
    step_timeout: float  # seconds
    caching: bool
    calm_chunk_tokens: int  # prompt tokens that may always join rows that decode; 0 for no limit


@dataclass(slots=True)
class Connection:
    """The stream, and the books that are kept over it."""

    worker: WorkerDescription
    stream: StepStream
    batcher: Batcher
    results: ResultHandler
    in_flight: deque[Step]
    remembering: Remembering | None
    pacing: Pacing
    outlook: Outlook
    restored: int  # blocks whose contents the mirror knew

    def send(self, step: Step, now: float) -> None:
        """Puts a step on its way. `now` is in seconds."""
        self.in_flight.append(step)
        self.stream.send(step.batch)
        self.pacing.sent(step.num_prompt_tokens, now)
        if step.batch.chunk_rows:
            self.outlook.composed()

    def take(self, result: StepResult) -> tuple[Step, int]:
        """The step that is answered, the oldest one in flight, and how many tokens were delivered.

        Raises ProtocolError where the answer makes no sense. Then nothing has changed: the step is in flight.
        """
        if not self.in_flight:
            raise ProtocolError(f"answer to step {result.step}, which was never sent")
        step = self.in_flight[0]
        delivered = self.results.apply(step, result)
        return self.in_flight.popleft(), delivered

    def learn(self, step: Step, result: StepResult, now: float) -> None:
        """Books what the answer to `step` says of caches and of times."""
        if self.remembering:
            self.remembering.answered(result.step, self.batcher.sent)
        busy_us = result.forward_us + result.sample_us
        hop_us = step.age_us - result.queue_us - busy_us
        self.pacing.answered(busy_us, hop_us, now)
        if step.num_prompt_tokens:
            self.batcher.prompts.answered(time.time_ns(), 1000 * busy_us, step.num_prompt_tokens)
        self.batcher.tiers.costs.observe_step(result.num_tokens, busy_us)


@dataclass(frozen=True, slots=True)
class Connector:
    """Opens connections, with what those to all workers share."""

    options: LaneOptions
    sessions: Sessions
    admissions: Admissions
    answers: AnswerLengths
    times: RequestTimes
    mirror: PrefixMirror | None

    async def open(self, transport: Transport, waiting: WaitingQueue) -> Connection:
        """Takes the worker over. `waiting` are the requests given to it. Raises WorkerLost."""
        stream = await transport.open()
        try:
            # Asked after opening: until then, steps of an earlier stream may still have been writing blocks.
            connection = await self._keep_books(stream, await transport.describe(), waiting)
        except BaseException:
            stream.close()
            raise
        worker = connection.worker
        log.info(
            "worker_connected",
            address=transport.address,
            worker=worker.worker_id,
            device=worker.device,
            blocks=worker.num_blocks,
            host_blocks=worker.num_host_blocks,
            rows=worker.max_rows,
            warm_blocks=connection.restored,
        )
        return connection

    async def _keep_books(
        self, stream: StepStream, worker: WorkerDescription, waiting: WaitingQueue
    ) -> Connection:
        options = self.options
        rows = Rows(worker.max_rows, worker.max_model_len, worker.block_size)
        pool = BlockPool(worker.num_blocks, unpack_u32(worker.block_generations).tolist())
        remembering = self._remembering(worker, pool)
        restored = await remembering.restore() if remembering else 0
        batcher = Batcher(
            rows,
            pool,
            worker.max_batched_tokens,
            caching=options.caching,
            admissions=self.admissions,
            calm_chunk_tokens=options.calm_chunk_tokens,
            num_host_blocks=worker.num_host_blocks,
            answers=self.answers,
        )
        return Connection(
            worker,
            stream,
            batcher,
            ResultHandler(batcher, self.sessions, worker.vocab_size, self.times),
            deque(),
            remembering,
            Pacing(options.steps_in_flight),
            Outlook(batcher, waiting, caching=options.caching),
            restored,
        )

    def _remembering(self, worker: WorkerDescription, pool: BlockPool) -> Remembering | None:
        if self.mirror is None or not self.options.caching:
            return None
        key = key_of(worker.model, worker.block_size, worker.worker_id, worker.epoch)
        return Remembering(self.mirror, key, pool)
