"""A worker without a model, which checks the scheduler as it goes.

Every cache slot remembers which token, at which position, was written last. Before a row samples, the worker
reads its whole context back through its block table: a block given to two rows, reused too early, or matched
to the wrong prefix shows up as a wrong token in a slot. The next token is a hash of the context, so any run
of a request, batched, preempted or moved, must end in the same tokens.

Host blocks remember what was saved to them. A move may be carried out at any time between its step's arrival
and the news of it, so a block that is touched too early or too late on either side shows up as well.
"""

import asyncio
import itertools
import zlib
from collections import deque
from dataclasses import dataclass

import numpy as np

from batchyard.errors import WorkerLost
from protos.packing import pack_i32, pack_u32, unpack_i32
from protos.step_pb2 import Moved, StepBatch, StepResult, WorkerDescription

VOCAB = 50
_epochs = itertools.count(1)


def next_token(context):
    """The token after `context`, a sequence of ints."""
    return zlib.crc32(np.asarray(context, np.int32).tobytes()) % VOCAB


def answer(prompt, max_tokens, stop_ids=()):
    """What a request must produce."""
    context = list(prompt)
    while len(context) < len(prompt) + max_tokens:
        context.append(next_token(context))
        if context[-1] in stop_ids:
            break
    return context[len(prompt) :]


@dataclass
class _Row:
    tokens: list
    blocks: list
    computed: int
    decoding: bool = False


class SimulatedWorker:
    """Executes steps in order, each when `execute` is called for it."""

    def __init__(
        self,
        num_blocks=64,
        block_size=4,
        max_rows=8,
        max_model_len=256,
        budget=32,
        num_host_blocks=0,
        worker_id="sim",
        **description,
    ):
        self.worker = WorkerDescription(
            worker_id=worker_id,
            epoch=next(_epochs),
            num_blocks=num_blocks,
            block_size=block_size,
            max_rows=max_rows,
            max_model_len=max_model_len,
            max_batched_tokens=budget,
            vocab_size=VOCAB,
            device="none",
            num_host_blocks=num_host_blocks,
            **description,
        )
        self.slots = {}
        self.host = {}  # block: the slots' contents
        self.saves = deque()  # (step, [(device block, host block)])
        self.loads = deque()  # likewise
        self.rows = {}
        self.last_step = 0
        self.computed_tokens = 0
        self.generations = [0] * num_blocks

    def describe(self):
        self.worker.block_generations = pack_u32(self.generations)
        return self.worker

    def reset(self):
        while self.saves or self.loads:
            self.move(bool(self.loads))
        self.rows.clear()
        self.last_step = 0

    def receive(self, batch: StepBatch):
        """The moves of a step may begin as soon as it is here."""
        for moves, mine, others in (
            (self.saves, batch.saved_blocks, batch.saved_to),
            (self.loads, batch.loaded_blocks, batch.loaded_from),
        ):
            pairs = list(zip(unpack_i32(mine).tolist(), unpack_i32(others).tolist(), strict=True))
            assert all(0 <= host < self.worker.num_host_blocks for _, host in pairs)
            if pairs:
                moves.append((batch.step, pairs))
        for block in unpack_i32(batch.loaded_blocks).tolist():
            self.generations[block] += 1

    def move(self, loads: bool) -> StepResult:
        """Carries out the moves of one step, its loads or its saves."""
        size = self.worker.block_size
        step, pairs = (self.loads if loads else self.saves).popleft()
        for block, host in pairs:
            slots = range(block * size, (block + 1) * size)
            if loads:
                self.slots.update(zip(slots, self.host[host], strict=True))
            else:
                self.host[host] = [self.slots[slot] for slot in slots]
        return StepResult(moved=Moved(loaded=step, load_us=1) if loads else Moved(saved=step, save_us=1))

    def execute(self, batch: StepBatch) -> StepResult:
        assert batch.step == self.last_step + 1
        self.last_step = batch.step
        self._apply(batch)
        work = [(r, 1) for r, row in self.rows.items() if row.decoding]
        work += list(
            zip(unpack_i32(batch.chunk_rows).tolist(), unpack_i32(batch.chunk_lens).tolist(), strict=True)
        )
        assert len({r for r, _ in work}) == len(work)
        num_tokens = sum(n for _, n in work)
        assert num_tokens <= self.worker.max_batched_tokens
        self.computed_tokens += num_tokens
        for r, n in work:
            self._write(self.rows[r], n)
        sampled = [(r, self._sample(self.rows[r])) for r, _ in work if self._reaches_end(self.rows[r])]
        return StepResult(
            step=batch.step,
            rows=pack_i32([r for r, _ in sampled]),
            tokens=pack_i32([t for _, t in sampled]),
            num_tokens=num_tokens,
        )

    def _apply(self, batch):
        for r in unpack_i32(batch.freed_rows).tolist():
            del self.rows[r]
        for new in batch.new_rows:
            assert new.row not in self.rows
            assert 0 <= new.row < self.worker.max_rows
            blocks = unpack_i32(new.block_ids).tolist()
            assert len(set(blocks)) == len(blocks)
            for block in blocks[new.computed // self.worker.block_size :]:
                self.generations[block] += 1
            self.rows[new.row] = _Row(unpack_i32(new.tokens).tolist(), blocks, new.computed)
        for r, block in zip(
            unpack_i32(batch.grown_rows).tolist(), unpack_i32(batch.grown_blocks).tolist(), strict=True
        ):
            self.rows[r].blocks.append(block)
            self.generations[block] += 1

    def _write(self, row, count):
        size = self.worker.block_size
        assert 0 < count <= len(row.tokens) - row.computed
        for position in range(row.computed, row.computed + count):
            self.slots[row.blocks[position // size] * size + position % size] = (
                row.tokens[position],
                position,
            )
        row.computed += count

    def _reaches_end(self, row):
        return row.computed == len(row.tokens)

    def _sample(self, row):
        size = self.worker.block_size
        read = [self.slots[row.blocks[p // size] * size + p % size] for p in range(row.computed)]
        assert read == [(token, p) for p, token in enumerate(row.tokens)], (
            "the cache does not hold the context"
        )
        row.tokens.append(next_token(row.tokens))
        row.decoding = True
        return row.tokens[-1]


class SimulatedTransport:
    """A worker in the same process. Steps are answered when the scheduler reads, or held back by `gate`."""

    def __init__(self, worker: SimulatedWorker, address="in-process"):
        self.address = address
        self.simulated = worker
        self.closed = False
        self.lost = False
        self.streams = 0
        self.stream = None

    async def describe(self):
        if self.lost:
            raise WorkerLost("gone")
        return self.simulated.describe()

    async def open(self):
        if self.lost:
            raise WorkerLost("gone")
        self.simulated.reset()
        self.streams += 1
        self.stream = _SimulatedStream(self)
        return self.stream

    async def close(self):
        self.closed = True


class _SimulatedStream:
    def __init__(self, transport):
        self._transport = transport
        self._batches = deque()
        self._arrived = asyncio.Event()
        self._gate = asyncio.Event()
        self._gate.set()
        self._loading = True
        self._leaving = False
        self.step_seconds = 0.0
        self.broken = False
        self.why = WorkerLost("broken")

    def hold(self):
        self._gate.clear()

    def go_on(self):
        self._gate.set()

    def hold_loads(self):
        self._loading = False

    def go_on_loading(self):
        self._loading = True
        self._arrived.set()

    def leave(self):
        self._leaving = True
        self._arrived.set()

    def send(self, batch):
        if self.broken:
            return
        self._batches.append(StepBatch.FromString(batch.SerializeToString()))
        self._transport.simulated.receive(batch)
        self._arrived.set()

    def break_off(self, why=None):
        self.broken = True
        self.why = why or self.why
        self._arrived.set()
        self._gate.set()

    async def receive(self):
        await asyncio.sleep(0)
        while not (self._batches or self._can_move() or self._leaving or self.broken):
            self._arrived.clear()
            await self._arrived.wait()
        await self._gate.wait()
        if self.broken:
            raise self.why
        simulated = self._transport.simulated
        if self._leaving:
            self._leaving = False
            return StepResult(leaving=True)
        if self._can_move():
            return simulated.move(loads=not simulated.saves)
        if self.step_seconds:
            await asyncio.sleep(self.step_seconds)
        return simulated.execute(self._batches.popleft())

    def _can_move(self):
        simulated = self._transport.simulated
        return simulated.saves or (simulated.loads and self._loading)

    def close(self):
        self.break_off()
