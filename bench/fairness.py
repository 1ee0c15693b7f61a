"""What tenants get of a saturated server: `python -m bench.fairness`.

The scheduler is the real one; the worker is simulated, in virtual time, at the speed of an H200 with llama-8b
(bench/simulation/h200.py). Four tables:

    shares       two equal tenants, requests of one a hundred times as long: Jain's index of tokens computed
                 over the worst 10 s while both have work; and how long a million tokens of each take, beside
                 the same requests first come, first served
    weights      tokens computed of three tenants of weights 1, 2 and 4
    priorities   TTFT of a high class beside a low one that saturates the server, and on an idle server
    overload     Poisson arrivals, from a fifth to five times of what the server can do: how many had their
                 first token in time, and how many of those who came back when told to were let in
"""

import argparse
import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bench.simulation.crowd import Asked, Crowd, Kind, Witness, gather
from bench.simulation.virtual_time import run
from scheduler.shedding import QueueLimits

WINDOW = 10.0  # seconds
SHAPES = (  # tokens of prompt and answer, short and long
    (32, 32, 3200, 3200),
    (64, 64, 6400, 6400),
    (64, 64, 6400, 64),
    (64, 64, 64, 6400),
    (128, 16, 12_800, 1600),
)
TTFT_S = 3.0


def jain(served: Sequence[float]) -> float:
    """Jain's index: 1 where all got the same, 1 / n where one got all."""
    return sum(served) ** 2 / (len(served) * sum(each**2 for each in served))


def worst_jain(worker: Witness, tenants: Sequence[str], start: float, end: float) -> float:
    """The least index over any WINDOW, to half a second."""
    starts = np.arange(start, end - WINDOW + 0.01, 0.5)
    return min(
        jain([worker.between(name, begin, begin + WINDOW) for name in tenants]) for begin in starts.tolist()
    )


async def saturate(kinds: Sequence[tuple[Kind, int]], seconds: float) -> Crowd:
    """Keeps so many requests of each kind asked; the crowd after so many seconds."""
    async with gather() as crowd:
        clients = asyncio.create_task(crowd.keep(kinds))
        await asyncio.sleep(seconds)
        clients.cancel()
        await asyncio.wait([clients])
    return crowd


async def finish(kinds: Sequence[tuple[Kind, int]]) -> tuple[Crowd, float]:
    """All at once, to the end: the crowd, and the seconds it took."""
    async with gather() as crowd:
        start = asyncio.get_running_loop().time()
        await crowd.all(kinds)
        return crowd, asyncio.get_running_loop().time() - start


def shares(seconds: float) -> None:
    """The first table."""
    print("\n| short | long | Jain, worst 10 s | all done after | first come | lost | preemptions |")
    print("|---|---|--:|--:|--:|--:|--:|")
    for prompt, output, long_prompt, long_output in SHAPES:
        short, long = Kind(prompt, output, "short"), Kind(long_prompt, long_output, "long")
        ratio = (long_prompt + long_output) / (prompt + output)
        backlog = run(saturate([(short, 20_000), (long, 200)], seconds))
        index = worst_jain(backlog.worker, ("short", "long"), 0.5, seconds - 1)
        # The same work in both orders, and as much of either kind.
        count = round(1_000_000 / (long_prompt + long_output))
        fair, took = run(finish([(short, round(ratio * count)), (long, count)]))
        one = [(replace(short, tenant=""), round(ratio * count)), (replace(long, tenant=""), count)]
        _, first_come = run(finish(one))
        print(
            f"| {prompt} + {output} | {long_prompt} + {long_output} | {index:.4f} | {took:.1f} s "
            f"| {first_come:.1f} s | {took / first_come - 1:+.1%} | {fair.scheduler.preemptions} |",
            flush=True,
        )


def weights(seconds: float) -> None:
    """The second table."""
    names = {"one": 1.0, "two": 2.0, "four": 4.0}
    print("\n| weight | tokens/s | share | of what it was promised |")
    print("|--:|--:|--:|--:|")
    kinds = [(Kind(256, 256, name, weight), 400) for name, weight in names.items()]
    worker = run(saturate(kinds, seconds)).worker
    served = {name: worker.between(name, WINDOW, seconds - 1) for name in names}
    for name, weight in names.items():
        share = served[name] / sum(served.values())
        rate = served[name] / (seconds - 1 - WINDOW)
        print(f"| {weight:g} | {rate:,.0f} | {share:.2%} | {share * 7 / weight:.2%} |")


async def with_priority(low: int, seconds: float, high: Kind) -> tuple[list[Asked], float]:
    """The high class's requests beside so many low ones at once, and tokens a second of these."""
    async with gather() as crowd:
        clients = asyncio.create_task(crowd.keep([(Kind(512, 256, "low"), low)]))
        await asyncio.sleep(10.0)
        await crowd.arrive(high, 1.0, seconds, 1, patient=False)
        clients.cancel()
        await asyncio.wait([clients])
    rate = crowd.worker.between("low", 10.0, 10.0 + seconds) / seconds
    return [asked for asked in crowd.asked if asked.kind is high], rate


def priorities(seconds: float) -> None:
    """The third table."""
    print("\n| high class, prompt | idle TTFT p50 | p99 | saturated p50 | p99 | times idle | low, tokens/s |")
    print("|--:|--:|--:|--:|--:|--:|--:|")
    for prompt in (512, 2048, 8000):
        high = Kind(prompt, 32, "high", priority=-10)
        idle, _ = run(with_priority(0, seconds, high))
        busy, low = run(with_priority(1000, seconds, high))
        i50, i99 = np.percentile([asked.ttft for asked in idle], [50, 99])
        b50, b99 = np.percentile([asked.ttft for asked in busy], [50, 99])
        cells = [f"{1000 * value:.1f} ms" for value in (i50, i99, b50, b99)]
        print(f"| {prompt} | {' | '.join(cells)} | {b99 / i99:.2f} | {low:,.0f} |", flush=True)


async def offered(kind: Kind, rate: float, seconds: float, limits: QueueLimits, *, patient: bool) -> Crowd:
    """Requests that come at `rate` a second, whatever happens to them."""
    async with gather(limits) as crowd:
        await crowd.arrive(kind, rate, seconds, 2, patient=patient)
    return crowd


def overload(seconds: float) -> None:
    """The fourth table."""
    kind = Kind(1024, 128, varied=True)
    full = run(saturate([(kind, 1000)], 40.0))
    capacity = sum(10 < asked.last < 39 and asked.over.is_set() for asked in full.asked) / 29
    limits = QueueLimits(2048, int(2.0 * capacity * kind.prompt))
    print(f"\ncapacity {capacity:.1f} requests/s; {limits.tokens:,} tokens may wait; TTFT target {TTFT_S} s")
    print("\n| offered | goodput, requests/s | accepted | their TTFT p50 | p99 | let in when told to come |")
    print("|--:|--:|--:|--:|--:|--:|")
    for factor in (0.2, 0.5, 0.8, 1.0, 1.5, 2.0, 3.0, 5.0):
        crowd = run(offered(kind, factor * capacity, seconds, limits, patient=False))
        print(_overload_row(factor, crowd, seconds), flush=True)
    for factor in (1.5, 3.0, 5.0):
        crowd = run(offered(kind, factor * capacity, seconds, limits, patient=True))
        print(_overload_row(factor, crowd, seconds), flush=True)


def _overload_row(factor: float, crowd: Crowd, seconds: float) -> str:
    taken = [asked for asked in crowd.asked if not asked.refused]
    p50, p99 = np.percentile([asked.ttft for asked in taken], [50, 99])
    end = max(asked.at for asked in taken)
    good = sum(asked.ttft <= TTFT_S for asked in taken) / max(seconds, end)
    seen: dict[bytes, list[Asked]] = {}
    for asked in crowd.asked:
        seen.setdefault(asked.tokens.tobytes(), []).append(asked)
    second = [tries[1] for tries in seen.values() if len(tries) > 1]
    back = f"{sum(not asked.refused for asked in second) / len(second):.1%}" if second else "-"
    return f"| {factor:g}x | {good:.1f} | {len(taken) / len(seen):.1%} | {p50:.2f} s | {p99:.2f} s | {back} |"


TABLES = {"shares": shares, "weights": weights, "priorities": priorities, "overload": overload}


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", choices=TABLES, help="one of them; default: all")
    parser.add_argument("--seconds", type=float, default=60.0, help="virtual, for each measurement")
    asked = parser.parse_args()
    for name in [asked.table] if asked.table else TABLES:
        started = time.perf_counter()
        TABLES[name](asked.seconds)
        print(f"({time.perf_counter() - started:.0f} s)")


if __name__ == "__main__":
    main()
