"""A production trace through the real scheduler: `python -m bench.mooncake --trace PATH`.

Workers are simulated, in virtual time, at the speed of an H200 with llama-8b (bench/simulation/h200.py);
requests, blocks, steps, placement and hashing are the scheduler's own. Two tables:

    hits      share of prompt tokens found in the cache, for sizes of all workers' caches together, beside one
              LRU cache of that size that serves requests one by one
    goodput   share of requests within both limits, TTFT and mean ITL (time from token to token) of the
              request, for ways to choose a worker; a request that is refused misses

The host tier is modelled as more GPU cache: nothing is charged for bringing blocks back from it.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from bench.simulation import trace
from bench.simulation.fleet import Outcome, play
from bench.simulation.routers import ApproximatePrefix, ExactPrefix, Random, RoundRobin
from bench.simulation.worker import SimulatedWorker
from scheduler.placement import LeastCost, Placement

TTFT_S, ITL_S = 2.0, 0.025
SIZES = (200_000, 1_000_000, 3_000_000, 10_000_000)  # tokens
PLACEMENTS: Mapping[str, Callable[[], Placement]] = {
    "Batchyard": LeastCost,
    "exact prefixes": ExactPrefix,
    "approximate prefixes": ApproximatePrefix,
    "round robin": RoundRobin,
    "random": Random,
}


def fleet(workers: int, tokens: int) -> list[SimulatedWorker]:
    """`workers` with caches of so many tokens together."""
    return [SimulatedWorker(f"worker-{n}", tokens // workers // 16) for n in range(workers)]


def show_hits(path: Path, workers: int, pace: float, most: int | None) -> None:
    """Prints the first table."""
    print(f"\n| cache, tokens in all | ideal LRU | Batchyard, {workers} workers | points apart | seconds |")
    print("|--:|--:|--:|--:|--:|")
    arrivals = trace.read(path, pace, most)
    for size in SIZES:
        started = time.perf_counter()
        outcome = play(arrivals, fleet(workers, size), LeastCost())
        ideal = trace.ideal_hit_rate(arrivals, size)
        found, took = outcome.hit_rate, time.perf_counter() - started
        row = f"| {size:,} | {ideal:.1%} | {found:.1%} | {100 * (found - ideal):+.1f} | {took:.0f} |"
        print(row, flush=True)


def show_goodput(path: Path, workers: int, pace: float, most: int | None, tokens: int) -> None:
    """Prints the second table."""
    arrivals = trace.read(path, pace, most)
    print(f"\n{len(arrivals)} requests, pace {pace:g}, {workers} workers, {tokens:,} tokens of cache")
    print("\n| placement | goodput | TTFT kept | ITL kept | TTFT p50 | p95 | hits | busiest worker / mean |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for name, placement in PLACEMENTS.items():
        print(_row(name, play(arrivals, fleet(workers, tokens), placement())), flush=True)


def _row(name: str, outcome: Outcome) -> str:
    p50, p95 = np.percentile(outcome.ttft, [50, 95])
    skew = max(outcome.busy) / (sum(outcome.busy) / len(outcome.busy))
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
    asked = parser.parse_args()
    if asked.table != "goodput":
        show_hits(asked.trace, asked.workers, asked.pace, asked.requests)
    if asked.table != "hits":
        show_goodput(asked.trace, asked.workers, asked.pace, asked.requests, asked.tokens)


if __name__ == "__main__":
    main()
