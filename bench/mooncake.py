"""A production trace through the real scheduler: `python -m bench.mooncake --trace PATH`.

Workers are simulated, in virtual time, at the speed of an H200 with llama-8b (bench/simulation/h200.py);
requests, blocks, steps, placement and hashing are the scheduler's own. Two tables:

    hits      share of prompt tokens found in the cache, for sizes of all workers' caches together, beside one
              LRU cache of that size that serves requests one by one
    goodput   share of requests within both limits, TTFT and mean ITL (time from token to token) of the
              request, for ways to choose a worker; a request that is refused misses

Without --gpu-tokens all cache is the GPUs'. With it each worker's GPU has so much of it and host memory the
rest: blocks move at 50 GB/s in each direction, beside the steps, which they do not slow down.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.simulation import trace
from bench.simulation.fleet import Outcome, play
from bench.simulation.routers import ApproximatePrefix, ExactPrefix, Random, RoundRobin
from bench.simulation.worker import SimulatedWorker
from scheduler.placement import LeastCost, Placement

TTFT_S, ITL_S = 2.0, 0.025
BLOCK_SIZE = 16  # tokens
SIZES = (200_000, 1_000_000, 3_000_000, 10_000_000)  # tokens
PLACEMENTS: Mapping[str, Callable[[], Placement]] = {
    "Batchyard": LeastCost,
    "exact prefixes": ExactPrefix,
    "approximate prefixes": ApproximatePrefix,
    "round robin": RoundRobin,
    "random": Random,
}


@dataclass(frozen=True, slots=True)
class Fleet:
    """Of so many workers, with at most `gpu_tokens` of each one's cache on its GPU; None: all of it."""

    workers: int
    gpu_tokens: int | None = None

    def made(self, tokens: int) -> list[SimulatedWorker]:
        """With caches of so many tokens together."""
        blocks = tokens // self.workers // BLOCK_SIZE
        on_gpu = min(blocks, self.gpu_tokens // BLOCK_SIZE) if self.gpu_tokens else blocks
        names = (f"worker-{n}" for n in range(self.workers))
        return [SimulatedWorker(name, on_gpu, num_host_blocks=blocks - on_gpu) for name in names]


def show_hits(arrivals: Sequence[trace.Arrival], fleet: Fleet) -> None:
    """Prints the first table."""
    print(f"\n| cache, tokens in all | ideal LRU | {fleet.workers} workers | points apart | seconds |")
    print("|--:|--:|--:|--:|--:|")
    for size in SIZES:
        started = time.perf_counter()
        outcome = play(arrivals, fleet.made(size), LeastCost())
        ideal = trace.ideal_hit_rate(arrivals, size)
        found, took = outcome.hit_rate, time.perf_counter() - started
        row = f"| {size:,} | {ideal:.1%} | {found:.1%} | {100 * (found - ideal):+.1f} | {took:.0f} |"
        print(row, flush=True)


def show_goodput(arrivals: Sequence[trace.Arrival], fleet: Fleet, tokens: int) -> None:
    """Prints the second table."""
    print(f"\n{len(arrivals)} requests, {fleet.workers} workers, {tokens:,} tokens of cache")
    print("\n| placement | goodput | TTFT kept | ITL kept | TTFT p50 | p95 | hits | busiest worker / mean |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for name, placement in PLACEMENTS.items():
        workers = fleet.made(tokens)
        print(_row(name, play(arrivals, workers, placement()), workers), flush=True)


def _row(name: str, outcome: Outcome, workers: Sequence[SimulatedWorker]) -> str:
    p50, p95 = np.percentile(outcome.ttft, [50, 95])
    busy = [worker.busy_seconds for worker in workers]
    skew = max(busy) / (sum(busy) / len(busy))
    cells = [
        name,
        f"{outcome.good(TTFT_S, ITL_S).mean():.1%}",
        f"{(outcome.ttft <= TTFT_S).mean():.1%}",
        f"{(outcome.itl <= ITL_S).mean():.1%}",
        f"{p50:.2f} s",
        f"{p95:.2f} s",
        f"{outcome.hit_rate:.1%}",
        f"{skew:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trace", type=Path, required=True, help="JSON lines in Mooncake's form")
    parser.add_argument("--requests", type=int, help="how many of them; default: all")
    parser.add_argument("--pace", type=float, default=1.0, help="how many times as fast they come")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=10_000_000, help="of cache in all, for goodput")
    parser.add_argument("--table", choices=("hits", "goodput", "both"), default="both")
    parser.add_argument("--gpu-tokens", type=int, help="of it on each GPU at most, the rest in host memory")
    asked = parser.parse_args()
    arrivals = trace.read(asked.trace, asked.pace, asked.requests)
    fleet = Fleet(asked.workers, asked.gpu_tokens)
    if asked.table != "goodput":
        show_hits(arrivals, fleet)
    if asked.table != "hits":
        show_goodput(arrivals, fleet, asked.tokens)


if __name__ == "__main__":
    main()
