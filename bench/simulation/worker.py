"""A worker without a model that takes as long as a real one would: a `Transport` in virtual time."""

import asyncio
from collections import deque

import numpy as np

from batchyard.errors import WorkerLost
from bench.simulation import h200
from protos.packing import pack_i32, pack_u32, unpack_i32
from protos.step_pb2 import StepBatch, StepResult, WorkerDescription

HOP_SECONDS = 0.0002  # one way
VOCAB = 2**31 - 1


class SimulatedWorker:
    """Rows as counts of tokens, and a clock. What it samples differs from everything sampled before."""

    def __init__(self, name: str, num_blocks: int, max_rows: int = 256, budget: int = 8192) -> None:
        """`budget` is the most tokens in a step."""
        self.description = WorkerDescription(
            worker_id=name,
            epoch=1,
            model="simulated",
            num_blocks=num_blocks,
            block_size=16,
            max_rows=max_rows,
            max_model_len=min(131_072, 16 * num_blocks),
            max_batched_tokens=budget,
            vocab_size=VOCAB,
            device="simulated",
            block_generations=pack_u32(np.zeros(num_blocks, np.uint32)),
        )
        self.computed_tokens = 0
        self.busy_seconds = 0.0
        self._computed = np.zeros(max_rows, np.int64)
        self._known = np.zeros(max_rows, np.int64)
        self._decoding = np.zeros(max_rows, np.bool_)
        self._sampled = 0

    def execute(self, batch: StepBatch) -> tuple[StepResult, float]:
        """The answer to a step, and the seconds it takes."""
        self._decoding[unpack_i32(batch.freed_rows)] = False
        for new in batch.new_rows:
            self._computed[new.row] = new.computed
            self._known[new.row] = len(new.tokens) // 4
        decodes = np.flatnonzero(self._decoding)
        rows = unpack_i32(batch.chunk_rows)
        lengths = unpack_i32(batch.chunk_lens)
        chunks = list(zip(lengths.tolist(), self._computed[rows].tolist(), strict=True))
        micros = h200.step_us(len(decodes), int(self._computed[decodes].sum()), chunks)
        self._computed[decodes] += 1
        self._computed[rows] += lengths
        ended = rows[self._computed[rows] == self._known[rows]]
        self._decoding[ended] = True
        sampling = np.concatenate([decodes, ended])
        result = StepResult(
            step=batch.step,
            rows=pack_i32(sampling),
            tokens=pack_i32(self._fresh(len(sampling))),
            num_tokens=len(decodes) + int(lengths.sum()),
            forward_us=int(micros),
        )
        self.computed_tokens += int(lengths.sum())
        self.busy_seconds += micros / 1e6
        return result, micros / 1e6

    def _fresh(self, count: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Tokens of no prompt, so that no answer is ever found again: a trace does not tell them."""
        self._sampled += count
        return VOCAB - 1 - (np.arange(self._sampled - count, self._sampled) % (VOCAB // 2))

    def reset(self) -> None:
        """All rows are free."""
        self._decoding[:] = False


class SimulatedTransport:
    """One worker, a hop away."""

    def __init__(self, worker: SimulatedWorker) -> None:
        self.worker = worker
        self.address = worker.description.worker_id

    async def describe(self) -> WorkerDescription:
        """At once."""
        return self.worker.description

    async def open(self) -> "_Stream":
        """At once."""
        self.worker.reset()
        return _Stream(self.worker)

    async def close(self) -> None:
        """Nothing to let go of."""


class _Stream:
    def __init__(self, worker: SimulatedWorker) -> None:
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        self._free_at = 0.0  # when the worker is done with what it has
        self._answers: deque[tuple[float, StepResult]] = deque()
        self._arrived: asyncio.Future[None] | None = None
        self._closed = False

    def send(self, batch: StepBatch) -> None:
        result, seconds = self._worker.execute(batch)
        self._free_at = max(self._free_at, self._loop.time() + HOP_SECONDS) + seconds
        self._answers.append((self._free_at + HOP_SECONDS, result))
        self._wake()

    async def receive(self) -> StepResult:
        while not self._answers and not self._closed:
            self._arrived = self._loop.create_future()
            await self._arrived
        if self._closed:
            raise WorkerLost("closed")
        at, result = self._answers.popleft()
        await asyncio.sleep(at - self._loop.time())
        return result

    def close(self) -> None:
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        if self._arrived and not self._arrived.done():
            self._arrived.set_result(None)
