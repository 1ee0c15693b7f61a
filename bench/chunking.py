"""What calm chunks give and cost (scheduler/chunking.py): `python -m bench.chunking`.

The real scheduler and one worker simulated in virtual time at the speed of an H200 with llama-8b
(bench/simulation/h200.py): `chat`, where single prompts come between rows that decode, and `mixed`, where the
throughput must not suffer. Gateway and network to the client are not in it: TTFT is less than a client sees.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bench.simulation.fleet import OPTIONS, Outcome, play
from bench.simulation.trace import BLOCK, Arrival
from bench.simulation.worker import SimulatedWorker
from bench.workloads import arrival_times, make_requests

BLOCKS = 50_000  # 800,000 tokens: what an H200 has beside 8 billion parameters
ROWS = 512


def arrivals(workload: str, count: int, rate: float, seed: int = 0) -> list[Arrival]:
    """The first `count` requests of a workload whose prompts share nothing."""
    made, used = [], 0
    times = arrival_times(rate, count, seed)
    for at, request in zip(times, make_requests(workload, count, seed), strict=True):
        length = len(request.prompt)
        blocks = -(-length // BLOCK)
        made.append(Arrival(at, length, request.max_tokens, tuple(range(used, used + blocks))))
        used += blocks
    return made


def outcome(requests: Sequence[Arrival], calm: int, concurrency: int | None = None) -> Outcome:
    """One worker, with at most `concurrency` requests at a time."""
    options = replace(OPTIONS, calm_chunk_tokens=calm)
    worker = SimulatedWorker("worker", BLOCKS, ROWS)
    return play(requests, [worker], options=options, concurrency=concurrency)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--calm", type=int, nargs="+", default=[0, 256, 320, 384, 448, 512, 1024], help="0 is off"
    )
    parser.add_argument("--rate", type=float, default=32.0, help="chat requests a second")
    parser.add_argument("--chat", type=int, default=4800, help="requests")
    parser.add_argument("--mixed", type=int, default=1024, help="requests")
    asked = parser.parse_args()
    chat = arrivals("chat", asked.chat, asked.rate)
    mixed = arrivals("mixed", asked.mixed, 0)
    print("| calm chunk | chat: TTFT p50 | p99 | ITL p50 | p99 | mixed c=256, out tok/s | ITL p99 |")
    print("|--:|--:|--:|--:|--:|--:|--:|")
    for calm in asked.calm:
        print(_row(calm, outcome(chat, calm), outcome(mixed, calm, 256)), flush=True)


def _row(calm: int, chat: Outcome, mixed: Outcome) -> str:
    ttft = 1000 * np.percentile(chat.ttft, [50, 99])
    itl = 1000 * np.percentile(np.concatenate(chat.gaps), [50, 99])
    rate = mixed.count.sum() / mixed.seconds
    stalls = 1000 * np.percentile(np.concatenate(mixed.gaps), 99)
    cells = [
        str(calm or "off"),
        *(f"{ms:.1f} ms" for ms in (*ttft, *itl)),
        f"{rate:,.0f}",
        f"{stalls:.1f} ms",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
