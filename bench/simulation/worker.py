"""A worker without a model that takes as long as a real one would: a `Transport` in virtual time."""

import asyncio
import itertools

import numpy as np

from batchyard.errors import WorkerLost
from bench.simulation import h200
from protos.packing import pack_i32, pack_u32, unpack_i32
from protos.step_pb2 import Moved, StepBatch, StepResult, WorkerDescription

HOP_SECONDS = 0.0002  # one way
BLOCK_SECONDS = 2 * 2**20 / 50e9  # to move one to or from host memory: 16 tokens, over PCIe 5
VOCAB = 2**31 - 1
_epochs = itertools.count(1)


class SimulatedWorker:
    """Rows as counts of tokens, and a clock. What it samples differs from everything sampled before."""

    def __init__(
        self,
        name: str,
        num_blocks: int,
        max_rows: int = 256,
        budget: int = 8192,
        num_host_blocks: int = 0,
        vocab: int = VOCAB,
    ) -> None:
        """`budget` is the most tokens in a step. Answers are of the upper half of `vocab`."""
        self.description = WorkerDescription(
            worker_id=name,
            epoch=next(_epochs),
            model="simulated",
            num_blocks=num_blocks,
            block_size=16,
            max_rows=max_rows,
            max_model_len=min(131_072, 16 * num_blocks),
            max_batched_tokens=budget,
            vocab_size=vocab,
            device="simulated",
            block_generations=pack_u32(np.zeros(num_blocks, np.uint32)),
            num_host_blocks=num_host_blocks,
        )
        self.computed_tokens = 0
        self.busy_seconds = 0.0
        self._computed = np.zeros(max_rows, np.int64)
        self._known = np.zeros(max_rows, np.int64)
        self._decoding = np.zeros(max_rows, np.bool_)
        self._sampled = 0
        self._vocab = vocab

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
        return self._vocab - 1 - (np.arange(self._sampled - count, self._sampled) % (self._vocab // 2))

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


class _Engine:
    """Does one thing after another: steps, or copies in one direction. The three run beside each other."""

    def __init__(self) -> None:
        self._free_at = 0.0

    def take(self, now: float, seconds: float) -> float:
        """When something is done that comes now."""
        self._free_at = max(self._free_at, now) + seconds
        return self._free_at


class _Stream:
    def __init__(self, worker: SimulatedWorker) -> None:
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        self._steps, self._saves, self._loads = _Engine(), _Engine(), _Engine()
        self._answers: asyncio.Queue[StepResult | None] = asyncio.Queue()

    def send(self, batch: StepBatch) -> None:
        now = self._loop.time() + HOP_SECONDS
        if blocks := len(batch.saved_blocks) // 4:
            self._answer(self._saves.take(now, blocks * BLOCK_SECONDS), Moved(saved=batch.step))
        if blocks := len(batch.loaded_blocks) // 4:
            seconds = blocks * BLOCK_SECONDS
            news = Moved(loaded=batch.step, load_us=int(1e6 * seconds))
            self._answer(self._loads.take(now, seconds), news)
        result, seconds = self._worker.execute(batch)
        self._answer(self._steps.take(now, seconds), result)

    async def receive(self) -> StepResult:
        result = await self._answers.get()
        if result is None:
            raise WorkerLost("closed")
        return result

    def close(self) -> None:
        self._answers.put_nowait(None)

    def _answer(self, at: float, news: StepResult | Moved) -> None:
        result = StepResult(moved=news) if isinstance(news, Moved) else news
        self._loop.call_at(at + HOP_SECONDS, self._answers.put_nowait, result)
