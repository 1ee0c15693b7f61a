"""Whether `batchyard_workers_wanted` is right: `python -m bench.autoscaling`.

The real scheduler; workers simulated in virtual time at the speed of an H200 with llama-8b. Requests come at
random; each load is tried on few workers and on more. As soon as there are enough, the signal should say
the same whatever their number, and so many should hold the objective for first tokens: 95% within a second.
"""

import argparse
import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.simulation.fleet import play
from bench.simulation.worker import SimulatedWorker
from scheduler.core import Scheduler
from scheduler.demand_meter import DemandMeter
from scheduler.request import Tokens

OBJECTIVE_S = 1.0
BLOCKS = 38_000  # of 16 tokens: an H200's, with llama-8b
_SETTLE_S = 45.0  # until the signal's means say something

LOADS = (
    (1024, 128, 20, 1),
    (1024, 128, 50, 1),
    (1024, 128, 100, 3),
    (128, 1024, 20, 1),
    (128, 1024, 40, 2),
    (8000, 200, 6, 1),
)
"""Tokens of prompt and answer, requests a second, and the number of workers to begin with."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A prompt like no other."""

    at: float
    length: int
    output: int
    seed: int

    def tokens(self) -> Tokens:
        """Random ones."""
        return np.random.default_rng(self.seed).integers(0, 1 << 17, self.length, dtype=np.int32)


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of a load on so many workers."""

    workers: int
    wanted: float  # a mean over all seconds but the first
    least: float
    most: float
    ttft_p95: float  # seconds, of those that came meanwhile
    held: float  # share within the objective


def arrivals(prompt: int, output: int, rate: float, seconds: float) -> list[Arrival]:
    """Requests at random times; prompts vary by a quarter, answers exponentially."""
    rng = np.random.default_rng(1)
    times = np.cumsum(rng.exponential(1 / rate, int(rate * seconds)))
    prompts = (prompt * rng.uniform(0.75, 1.25, len(times))).astype(int)
    outputs = np.clip(rng.exponential(output, len(times)), 1, 8 * output).astype(int)
    return [
        Arrival(at, int(length), int(answer), seed)
        for seed, (at, length, answer) in enumerate(zip(times.tolist(), prompts, outputs, strict=True))
    ]


def attempt(asked: Sequence[Arrival], workers: int, seconds: float) -> Trial:
    """Plays the requests, looking at the signal every second."""
    seen: list[float] = []

    async def look(scheduler: Scheduler) -> None:
        meter = DemandMeter(scheduler, OBJECTIVE_S)
        for _ in range(int(seconds)):
            await asyncio.sleep(1.0)
            meter.look()
            seen.append(meter.wanted)

    fleet = [SimulatedWorker(f"worker-{n}", BLOCKS) for n in range(workers)]
    outcome = play(asked, fleet, beside=look)
    told = np.array(seen[int(_SETTLE_S) :])
    ttft = outcome.ttft[np.array([request.at >= _SETTLE_S for request in asked])]
    return Trial(
        workers,
        float(told.mean()),
        float(told.min()),
        float(told.max()),
        float(np.percentile(ttft, 95)),
        float((ttft <= OBJECTIVE_S).mean()),
    )


def table(seconds: float) -> None:
    """For each load, up to one worker more than is wanted."""
    print("| prompt + answer | requests/s | workers | wanted | least .. most | TTFT p95 | in 1 s |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for prompt, output, rate, first in LOADS:
        asked = arrivals(prompt, output, rate, seconds)
        workers = enough = first
        while workers <= enough + 1:
            trial = attempt(asked, workers, seconds)
            enough = max(enough, min(workers + 1, math.ceil(trial.wanted)))
            print(
                f"| {prompt} + {output} | {rate} | {workers} | {trial.wanted:.2f} "
                f"| {trial.least:.2f} .. {trial.most:.2f} | {trial.ttft_p95:.2f} s | {trial.held:.1%} |",
                flush=True,
            )
            if trial.wanted <= workers - 1:
                break
            workers += 1


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=120.0, help="virtual, for each measurement")
    started = time.perf_counter()
    table(parser.parse_args().seconds)
    print(f"({time.perf_counter() - started:.0f} s)")


if __name__ == "__main__":
    main()
