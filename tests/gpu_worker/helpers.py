"""A tiny model in a runner, messages to it, and a scheduler written by hand."""

import random
import time
from collections import deque
from dataclasses import dataclass, field

import torch

from gpu_worker.kernels.reference import TorchOps
from gpu_worker.kv_cache import CacheShape, by_layer
from gpu_worker.models import load_model
from gpu_worker.rows import RowLimits, RowTable
from gpu_worker.runner import Runner
from protos.packing import pack_f32, pack_i32, unpack_i32
from protos.sampling_pb2 import Sampling
from protos.step_pb2 import NewRow, StepBatch

VOCAB = 300


def sampling(stop_ids=(), bias=None, **changes):
    """Greedy, and nothing else, but for `changes`."""
    bias = bias or {}
    return Sampling(
        **{"top_p": 1.0, "repetition_penalty": 1.0, **changes},
        stop_token_ids=pack_i32(sorted(stop_ids)),
        bias_ids=pack_i32(list(bias)),
        bias_values=pack_f32(list(bias.values())),
    )


def new_row(row, tokens, blocks, computed=0, prompt_len=None, request_id="", traceparent="", **params):
    return NewRow(
        row=row,
        request_id=request_id,
        tokens=pack_i32(tokens),
        prompt_len=len(tokens) if prompt_len is None else prompt_len,
        computed=computed,
        block_ids=pack_i32(blocks),
        sampling=sampling(**params),
        traceparent=traceparent,
    )


def batch(step, new=(), freed=(), grown=(), chunks=()):
    """`grown`: (row, block) pairs; `chunks`: (row, tokens) pairs."""
    return StepBatch(
        step=step,
        freed_rows=pack_i32(list(freed)),
        new_rows=list(new),
        grown_rows=pack_i32([row for row, _ in grown]),
        grown_blocks=pack_i32([block for _, block in grown]),
        chunk_rows=pack_i32([row for row, _ in chunks]),
        chunk_lens=pack_i32([length for _, length in chunks]),
    )


def sampled_of(result):
    """{row: token} of a StepResult."""
    return dict(zip(unpack_i32(result.rows).tolist(), unpack_i32(result.tokens).tolist(), strict=True))


def load_tiny(folder, ops=None, device="cpu", max_model_len=128):
    return load_model(
        folder,
        load_format="auto",
        dtype=torch.float32,
        device=torch.device(device),
        ops=ops or TorchOps(),
        max_model_len=max_model_len,
        seed=0,
        progress=lambda done, total: None,
    )


def make_runner(
    model,
    max_rows=4,
    max_model_len=128,
    max_batched_tokens=64,
    num_blocks=32,
    block_size=8,
    num_host_blocks=0,
):
    limits = RowLimits(max_rows, max_model_len, max_batched_tokens, num_blocks, block_size, num_host_blocks)
    rows = RowTable(limits, model.config.vocab_size, model.device)
    memory = CacheShape.of(model.config, block_size, model.dtype).allocate(num_blocks, model.device)
    memory.fill_(torch.nan)  # whoever reads what nobody wrote is found out
    runner = Runner(model, rows, by_layer(memory))
    runner.memory = memory
    return runner


def run_step(runner, message):
    return runner.execute(message, time.perf_counter_ns()).result()[0]


def greedy(reference, prompt, num_tokens):
    """What transformers says."""
    ids = torch.tensor([prompt])
    out = reference.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_tokens, do_sample=False
    )
    return out[0, len(prompt) :].tolist()


def random_prompts(*lengths, seed=1):
    rng = random.Random(seed)
    return [[rng.randrange(3, VOCAB) for _ in range(length)] for length in lengths]


@dataclass(eq=False)
class Job:
    """One request of the scheduler below."""

    prompt: list
    max_tokens: int
    params: dict = field(default_factory=dict)
    answer: list = field(default_factory=list)
    results: list = field(default_factory=list)  # (StepResult, row) of each step it sampled in
    blocks: list = field(default_factory=list)
    row: int | None = None
    computed: int = 0
    known: int = 0

    @property
    def wanted(self):
        return len(self.prompt) + self.max_tokens


class HandScheduler:
    """Steps a runner as the scheduler would: chunks, several steps in flight, rows and blocks reused late."""

    def __init__(self, runner, chunk=7, in_flight=2):
        self.runner = runner
        self.chunk = chunk
        self.most_in_flight = in_flight
        limits = runner.rows.limits
        self.free_rows = deque(range(limits.max_rows))
        self.free_blocks = deque(range(limits.num_blocks))
        self.waiting = deque()
        self.running = {}
        self.ended = []
        self.in_flight = deque()
        self.fences = deque()  # (step that freed them, rows, blocks)
        self.step = 0

    def run(self, jobs):
        """Until all are answered; their answers."""
        self.waiting.extend(jobs)
        while self.waiting or self.running or self.in_flight:
            if self.waiting or self.running or self.ended:
                self.launch()
            if len(self.in_flight) >= self.most_in_flight or not (self.waiting or self.running):
                self.settle()
        return [job.answer for job in jobs]

    def launch(self):
        self.step += 1
        freed = [job.row for job in self.ended]
        if self.ended:
            self.fences.append((self.step, freed, [b for job in self.ended for b in job.blocks]))
            self.ended = []
        new = self.admit()
        budget = self.runner.rows.limits.max_batched_tokens
        decoding = [job for job in self.running.values() if job.computed >= len(job.prompt)]
        budget -= len(decoding)
        grown, chunks = [], []
        for job in list(self.running.values()):
            if job in decoding:
                length = 1
            else:
                length = min(self.chunk, len(job.prompt) - job.computed, budget)
                if not length:
                    continue
                budget -= length
                chunks.append((job.row, length))
            grown += self.grow(job, job.computed + length)
            job.computed += length
        sampling_jobs = {job.row: job for job in self.running.values() if job.computed == job.known}
        message = batch(self.step, new, freed, grown, chunks)
        self.in_flight.append((self.runner.execute(message, time.perf_counter_ns()), sampling_jobs))
        for job in sampling_jobs.values():
            job.known += 1
            if job.known == job.wanted:
                del self.running[job.row]
                self.ended.append(job)

    def admit(self):
        new = []
        # Blocks for all it will ever need must be there, for there is no preemption here.
        size = self.runner.rows.limits.block_size
        promised = sum(-(-job.wanted // size) - len(job.blocks) for job in self.running.values())
        while self.waiting and self.free_rows:
            job = self.waiting[0]
            promised += -(-job.wanted // size)
            if promised > len(self.free_blocks):
                break
            self.waiting.popleft()
            job.row = self.free_rows.popleft()
            job.known = len(job.prompt)
            self.running[job.row] = job
            self.grow(job, min(self.chunk, len(job.prompt)))
            promised -= len(job.blocks)
            new.append(new_row(job.row, job.prompt, job.blocks, **job.params))
        return new

    def grow(self, job, length):
        grown = []
        while len(job.blocks) * self.runner.rows.limits.block_size < length:
            job.blocks.append(self.free_blocks.popleft())
            grown.append((job.row, job.blocks[-1]))
        return grown

    def settle(self):
        launched, jobs = self.in_flight.popleft()
        result = launched.result()[0]
        sampled = sampled_of(result)
        assert sampled.keys() == jobs.keys()
        for row, token in sampled.items():
            jobs[row].answer.append(token)
            jobs[row].results.append((result, row))
        while self.fences and self.fences[0][0] <= result.step + 1:
            _, rows, blocks = self.fences.popleft()
            self.free_rows.extend(rows)
            self.free_blocks.extend(blocks)
