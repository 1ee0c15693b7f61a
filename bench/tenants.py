"""Placement over several real workers on `tenants`, scaled down: `python -m bench.tenants`.

Worker processes with the demo model on the CPU, and the scheduler in this process with one way to choose a
worker after another, each with caches that it knows nothing of. Every tenant has a system prompt, every
request one of these and a question of its own. Together the caches hold all system prompts, and one of them
does not: what counts is that equal beginnings meet on a worker, and that none gets more to do than others.

    ideal              share of prompt tokens found by one LRU cache as large as all together, were requests
                       served one by one
    cached             share of prompt tokens that were not computed
    requests, tokens   of the worker with most, over the mean of all: requests it was given, and tokens it
                       computed of prompts and answers

Requests per second say little where the workers share a few cores: all of them wait for the same ones.
"""

import argparse
import asyncio
import contextlib
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import structlog

from batchyard.config import ServeSettings
from batchyard.plan import plan, this_machine
from bench.service import environment
from bench.simulation import routers
from bench.simulation.fleet import Outcome, serve
from bench.simulation.lru import IdealCache
from scheduler.lane import Lane
from scheduler.lease import Lease
from scheduler.load import Load
from scheduler.placement import LeastCost, Placement
from scheduler.request import Request, Tokens
from scheduler.transport import GrpcTransport

BLOCK_SIZE = 16
LOWEST_ID, END_ID = 100, 6000  # inside the demo model's vocabulary
TENANTS = 32
TIMEOUT = 600.0  # seconds for a run, with the workers' start

PLACEMENTS: Mapping[str, Callable[[], Placement]] = {
    "Batchyard": LeastCost,
    "round robin": routers.RoundRobin,
    "random": routers.Random,
}


@dataclass(frozen=True, slots=True)
class Shape:
    """Of the fleet and of what is asked; lengths in tokens."""

    workers: int
    blocks: int  # of each worker's cache
    requests: int
    concurrency: int
    system: int
    question: int
    answer: int
    rounds: int


@dataclass(frozen=True, slots=True)
class Question:
    """An `Arrival` at once: a tenant's system prompt and something of one's own."""

    prompt: Tokens
    output: int
    at: float = 0.0

    @property
    def length(self) -> int:
        """Tokens of prompt."""
        return len(self.prompt)

    def tokens(self) -> Tokens:
        """The prompt [length] int32."""
        return self.prompt


class Counted:
    """A placement that keeps count of what each worker gets to compute."""

    def __init__(self, placement: Placement) -> None:
        self.given: Counter[str] = Counter()  # requests, by address
        self.computed: Counter[str] = Counter()  # tokens
        self._placement = placement

    def choose(self, request: Request, lanes: Sequence[Lane]) -> tuple[Lane, Load] | None:
        """As the placement inside."""
        chosen = self._placement.choose(request, lanes)
        if chosen:
            lane, load = chosen
            self.given[lane.address] += 1
            self.computed[lane.address] += load.uncached + request.max_tokens
        return chosen


def questions(shape: Shape, seed: int) -> list[Question]:
    """The requests of one run."""
    rng = Random(seed)

    def ids(count: int) -> list[int]:
        return [rng.randrange(LOWEST_ID, END_ID) for _ in range(count)]

    systems = [ids(shape.system) for _ in range(TENANTS)]
    return [
        Question(np.array(rng.choice(systems) + ids(shape.question), np.int32), shape.answer)
        for _ in range(shape.requests)
    ]


def ideal(asked: Sequence[Question], blocks: int) -> float:
    """Share of prompt tokens found by one cache of so many blocks."""
    cache = IdealCache(blocks)
    found = 0
    for question in asked:
        # A block is what stands in it and before it.
        ends = range(BLOCK_SIZE, question.length + 1, BLOCK_SIZE)
        known = cache.visit([question.prompt[:end].tobytes() for end in ends])
        found += min(known * BLOCK_SIZE, question.length - 1)
    return found / sum(question.length for question in asked)


@contextlib.contextmanager
def worker_processes(shape: Shape) -> Iterator[list[str]]:
    """Starts the workers; their addresses."""
    settings = ServeSettings.model_validate(
        {
            "device": "cpu",
            "workers": shape.workers,
            "num_gpu_blocks": shape.blocks,
            "block_size": BLOCK_SIZE,
            "max_num_seqs": 2 * shape.concurrency // shape.workers,
            "max_model_len": 2 * (shape.system + shape.question + shape.answer),
        }
    )
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        specs = plan(settings, Path(folder), this_machine({}), environment({}))
        specs = [spec for spec in specs if spec.role == "worker"]
        for spec in specs:
            # They end when their standard input does.
            process = subprocess.Popen(
                spec.command,
                env=spec.env,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)
        yield [f"unix:{folder}/{spec.name}.sock" for spec in specs]


async def run(
    asked: Sequence[Question], addresses: Sequence[str], placement: Placement, concurrency: int
) -> Outcome:
    """One run on all workers. Raises TimeoutError."""
    transports = [GrpcTransport(address, Lease()) for address in addresses]
    try:
        async with asyncio.timeout(TIMEOUT):
            return await serve(asked, transports, placement, concurrency=concurrency)
    finally:
        for transport in transports:
            await transport.close()


async def compare(shape: Shape, addresses: Sequence[str]) -> None:
    """Prints the table, a line for each run."""
    print("| placement | ideal | cached | apart | requests | tokens | req/s | TTFT p50 | p99 |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    warm_up = questions(shape, seed=-1)[: 2 * shape.concurrency]
    await run(warm_up, addresses, routers.RoundRobin(), shape.concurrency)
    for seed in range(shape.rounds):
        asked = questions(shape, seed)
        best = ideal(asked, shape.workers * shape.blocks)
        for name, make in PLACEMENTS.items():
            counted = Counted(make())
            outcome = await run(asked, addresses, counted, shape.concurrency)
            skews = [_skew(count, shape.workers) for count in (counted.given, counted.computed)]
            print(_row(name, outcome, best, skews), flush=True)


def _skew(count: Counter[str], workers: int) -> float:
    return max(count.values()) * workers / count.total()


def _row(name: str, outcome: Outcome, best: float, skews: Sequence[float]) -> str:
    p50, p99 = 1000 * np.percentile(outcome.ttft, [50, 99])
    cells = [
        name,
        f"{best:.1%}",
        f"{outcome.hit_rate:.1%}",
        f"{100 * (outcome.hit_rate - best):+.1f}",
        *(f"{skew:.2f}" for skew in skews),
        f"{len(outcome.prompt) / outcome.seconds:.1f}",
        f"{p50:.0f} ms",
        f"{p99:.0f} ms",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--blocks", type=int, default=256, help="of each worker's cache")
    parser.add_argument("--requests", type=int, default=1024, help="of a run")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--system", type=int, default=256, help="tokens of a system prompt")
    parser.add_argument("--question", type=int, default=8, help="tokens of one's own")
    parser.add_argument("--answer", type=int, default=8, help="tokens")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each placement, in turn")
    shape = Shape(**vars(parser.parse_args()))
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    with worker_processes(shape) as addresses:
        asyncio.run(compare(shape, addresses))


if __name__ == "__main__":
    main()
