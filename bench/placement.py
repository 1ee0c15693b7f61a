"""What matching and placing one long prompt costs the scheduler: `python -m bench.placement`.

A prompt of 100,000 tokens, 64 workers, 10 million blocks indexed in all. Timed is what happens on the event
loop when the request's turn comes, with the code of the service: every worker is asked what it has of the
prompt, the least cost is chosen, the chosen worker's chain is walked exactly, and what it will compute is
noted. Hashing comes before, once a prompt, in slices between steps, and is timed apart. Memory is what the
kernel says.
"""

import argparse
import asyncio
import gc
import itertools
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import structlog

from bench.simulation.virtual_time import run
from bench.simulation.worker import SimulatedTransport, SimulatedWorker
from prefix_cache import hashing
from protos.sampling_pb2 import Sampling
from scheduler.connection import LaneOptions
from scheduler.core import HASHED_AT_ONCE, Scheduler
from scheduler.lane import Lane
from scheduler.placement import LeastCost
from scheduler.request import Request, Tokens
from scheduler.tracing import RequestSpans

BLOCK_SIZE = 16
_COMMON = 0.2  # of each prompt is shared by all: a system prompt


@dataclass(frozen=True, slots=True)
class Shape:
    """Of the fleet and of the prompts asked."""

    workers: int
    blocks: int
    prompt: int
    asked: int


def resident() -> int:
    """Bytes of memory that this process has."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def connect(shape: Shape) -> tuple[Scheduler, asyncio.Task[None]]:
    """A scheduler whose workers are connected and empty, and the task that keeps it so."""
    per_worker = shape.blocks // shape.workers
    workers = [
        SimulatedWorker(f"worker-{n}", per_worker + shape.prompt // BLOCK_SIZE) for n in range(shape.workers)
    ]
    options = LaneOptions(steps_in_flight=2, step_timeout=1e9, caching=True, calm_chunk_tokens=0)
    transports = [SimulatedTransport(worker) for worker in workers]
    scheduler = Scheduler(transports, options, RequestSpans())
    serving = asyncio.create_task(scheduler.run())
    while not all(lane.connected for lane in scheduler.lanes):
        await asyncio.sleep(0.001)
    return scheduler, serving


def prompt(shape: Shape, number: int) -> Tokens:
    """One conversation of its own after a beginning that all have; [shape.prompt] int32."""
    rng = np.random.default_rng(number)
    tokens = rng.integers(0, 1 << 30, shape.prompt, dtype=np.int32)
    common = int(shape.prompt * _COMMON)
    tokens[:common] = np.arange(common)
    return tokens


def fill(shape: Shape, lanes: Sequence[Lane]) -> int:
    """Puts conversations into the workers' caches, each on one to three of them, until they are full."""
    room = [shape.blocks // shape.workers] * len(lanes)
    indexed = 0
    rng = np.random.default_rng(1)
    for number in itertools.count():
        chain = list(hashing.chain(hashing.root(""), prompt(shape, number), BLOCK_SIZE))
        chain = chain[: int(rng.integers(len(chain) // 4, len(chain)))]
        for lane in rng.permutation(len(lanes))[: int(rng.integers(1, 4))].tolist():
            batcher = lanes[lane].batcher
            if batcher is None:
                raise AssertionError("not connected")
            index = batcher.pool.index
            known = len(index.match(chain))
            # Copies: in service every request makes its digests anew.
            new = [hashing.Digest(bytes(bytearray(digest))) for digest in chain[known : known + room[lane]]]
            blocks = batcher.pool.allocate(len(new))
            for depth, (block, digest) in enumerate(zip(blocks, new, strict=True), known):
                batcher.pool.register(block, digest, depth, 0)
            batcher.pool.confirmed(0)
            batcher.pool.release(blocks, 0)
            batcher.pool.settle(0)
            room[lane] -= len(new)
            indexed += len(new)
        if indexed >= shape.blocks * 0.99:
            return indexed
    raise AssertionError("there are always more conversations")


def ask(shape: Shape, number: int) -> Request:
    """A request that goes on with conversation `number`; hashed."""
    return Request(
        session=None,  # type: ignore[arg-type]
        id=number,
        request_id=str(number),
        tokens=prompt(shape, number),
        prompt_len=shape.prompt,
        max_tokens=1,
        sampling=Sampling(),
        stop_ids=frozenset(),
        cache_salt="",
        arrival=number,
    )


def place(request: Request, lanes: Sequence[Lane]) -> float:
    """Milliseconds to match `request` everywhere, choose, and give it away; it is taken back after."""
    started = time.perf_counter()
    chosen = LeastCost().choose(request, lanes)
    if chosen is None:
        raise AssertionError("nobody wants it")
    lane, load = chosen
    lane.give(request, load)
    milliseconds = 1000 * (time.perf_counter() - started)
    lane.end(request)
    return milliseconds


def hash_slices(request: Request) -> list[float]:
    """Milliseconds of each slice in which `request` is hashed."""
    milliseconds, done = [], False
    while not done:
        started = time.perf_counter()
        done = request.hash_some(BLOCK_SIZE, HASHED_AT_ONCE)
        milliseconds.append(1000 * (time.perf_counter() - started))
    return milliseconds


async def measure(shape: Shape) -> None:
    """Prints the figures."""
    empty = resident()
    scheduler, serving = await connect(shape)
    connected = resident()
    indexed = fill(shape, scheduler.lanes)
    gc.collect()
    gc.freeze()
    full = resident()
    print(f"{shape.workers} workers, {indexed:,} blocks indexed, prompts of {shape.prompt:,} tokens")
    print(f"memory per block: {(full - connected) / indexed:.0f} bytes for the index, ", end="")
    print(f"{(connected - empty) / indexed:.0f} for the block pool")
    hashed, placed = [], []
    for number in range(shape.asked):
        request = ask(shape, number)
        hashed.append(hash_slices(request))
        placed.append(place(request, scheduler.lanes))
    _line("matching and placement", placed)
    _line("hashing, whole prompt", [sum(slices) for slices in hashed])
    _line("hashing, one slice", [one for slices in hashed for one in slices])
    serving.cancel()


def _line(name: str, milliseconds: list[float]) -> None:
    ordered = sorted(milliseconds)
    p50, p95 = statistics.median(ordered), ordered[int(0.95 * len(ordered))]
    print(f"{name:24} p50 {p50:6.3f} ms   p95 {p95:6.3f} ms   most {ordered[-1]:6.3f} ms")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=10_000_000, help="indexed in all")
    parser.add_argument("--prompt", type=int, default=100_000, help="tokens")
    parser.add_argument("--asked", type=int, default=300, help="prompts timed")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    run(measure(Shape(**vars(arguments))))


if __name__ == "__main__":
    main()
