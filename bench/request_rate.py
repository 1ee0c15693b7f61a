"""A thousand small requests a second through gateways and scheduler: `python -m bench.request_rate`.

Gateways, scheduler and client processes are real, over HTTP and gRPC; the workers are stand-ins that take as
long as an H200 with llama-8b would and compute nothing (bench/simulation/stand_in.py). Requests come at
random, at a rate that rises during the ramp and then stays. Prompts are text, no two alike; answers are
streamed.

    added      milliseconds that gateway and scheduler add to a request: what is lost beside ones that take no
               time at all (bench/simulation/record.py). A worker's steps, and waiting for those in flight,
               are the worker's time
    memory     resident, at the start, after the ramp, at the end
    cores      used after the ramp

With --search, short runs look for the highest rate that keeps p99 of `added` within 50 ms.
"""

import argparse
import asyncio
import math
import multiprocessing
import os
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection

import numpy as np
import uvloop

from bench.lean_client import Client, Reply, completion_body, in_time
from bench.simulation.record import Added, added
from bench.stand_ins import Meter, machine, stand_ins

SEARCH_P99_MS = 50.0
SEARCH_SECONDS, SEARCH_RAMP = 10.0, 2.0
_SYLLABLES = ("ba", "ne", "ki", "lo", "mu", "ras", "ten", "vil", "dor", "gan", "pel", "sim", "tor", "wen")


@dataclass(frozen=True, slots=True)
class Options:
    """The command line."""

    rate: float  # requests a second
    seconds: float
    ramp: float  # seconds, of these
    words: int  # of a prompt
    answer: int  # tokens
    workers: int
    gateways: int
    clients: int  # processes


@dataclass(frozen=True, slots=True)
class Result:
    """Of one run."""

    replies: list[Reply]
    added: Added  # of requests sent after the ramp
    uses: str  # a table

    @property
    def statuses(self) -> Counter[str]:
        """How many requests ended how."""
        return Counter(_ending(reply) for reply in self.replies)

    @property
    def clean(self) -> bool:
        """Whether nothing but 200 and 429 was answered."""
        return set(self.statuses) <= {"200", "429"}

    def p99_ms(self) -> float:
        """Of what was added."""
        return 1000 * float(np.percentile(self.added.in_all, 99)) if len(self.added.before) else math.inf


def _ending(reply: Reply) -> str:
    if not reply.status:
        return "no connection"
    return f"{reply.status}, broken off" if reply.broken else str(reply.status)


def arrivals(rate: float, seconds: float, ramp: float, seed: int) -> list[float]:
    """Seconds of random arrivals: `rate` a second, but before `ramp` as much less as it is earlier."""
    chance, times, at = random.Random(seed), [], 0.0
    while (at := at + chance.expovariate(rate)) < seconds:
        if at >= ramp or chance.random() < at / ramp:
            times.append(at)
    return times


def body(number: int, words: int, answer: int) -> bytes:
    """A request with a prompt of its own."""
    chance = random.Random(number)
    prompt = " ".join("".join(chance.choices(_SYLLABLES, k=2)) for _ in range(words))
    return completion_body(prompt, answer)


def _client(options: Options, share: int, port: int, start: float, results: Connection) -> None:
    results.send(uvloop.run(_ask_all(options, share, port, start)))


async def _ask_all(options: Options, share: int, port: int, start: float) -> list[Reply]:
    client = Client("127.0.0.1", port)
    times = arrivals(options.rate / options.clients, options.seconds, options.ramp, share)
    bodies = [body(share + n * options.clients, options.words, options.answer) for n in range(len(times))]
    loop = asyncio.get_running_loop()
    begin = loop.time() + start - time.perf_counter()
    replies = await in_time(times, begin, lambda n: client.ask(f"load-{share}-{n}", bodies[n]))
    client.close()
    return replies


def run(options: Options) -> Result:
    """One run on processes of its own."""
    with stand_ins(options.workers, options.gateways) as fleet:
        context = multiprocessing.get_context("spawn")
        start = (
            time.perf_counter() + 3.0 + options.rate * options.seconds / 50_000
        )  # to start, and make bodies
        pipes = [context.Pipe(duplex=False) for _ in range(options.clients)]
        clients = [
            context.Process(target=_client, args=(options, n, fleet.port, start, sending), daemon=True)
            for n, (_, sending) in enumerate(pipes)
        ]
        for client, (_, sending) in zip(clients, pipes, strict=True):
            client.start()
            sending.close()  # so that we see the end of the pipe when the client dies
        meter = Meter(fleet.pids() | {f"client-{n}": client.pid or 0 for n, client in enumerate(clients)})
        replies = [reply for receiving, _ in pipes for reply in receiving.recv()]
        meter.stop()
        for client in clients:
            client.join()
        steady = start + options.ramp
        asked = {
            r.name: (r.sent, r.first, r.last) for r in replies if _ending(r) == "200" and r.sent >= steady
        }
        parts = Added.join(added(path, asked) for path in fleet.end_workers())
        return Result(replies, parts, _uses(meter, start, steady, start + options.seconds))


def _uses(meter: Meter, start: float, steady: float, end: float) -> str:
    before = meter.between(start, end)
    lines = ["| process | MiB at the start | after the ramp | at the end | cores |", "|---|--:|--:|--:|--:|"]
    for name, (ramped, last, cores) in meter.between(steady, end).items():
        first = before[name][0]
        lines.append(f"| {name} | {first.mib:.0f} | {ramped.mib:.0f} | {last.mib:.0f} | {cores:.2f} |")
    return "\n".join(lines)


def show(options: Options, result: Result) -> None:
    """Prints all tables of a run."""
    replies = [reply for reply in result.replies if reply.status == 200 and not reply.broken]
    ended = ", ".join(f"{count:,} x {ending}" for ending, count in sorted(result.statuses.items()))
    print(
        f"\n{options.rate:g} requests a second for {options.seconds:g} s, {options.ramp:g} s of ramp: "
        f"{ended}\n"
    )
    print("| milliseconds | p50 | p90 | p99 | most |\n|---|--:|--:|--:|--:|")
    parts = result.added
    _row("first token", [reply.first - reply.sent for reply in replies])
    _row("last token", [reply.last - reply.sent for reply in replies])
    _row("added to the first token", parts.to_first)
    _row("added in all", parts.in_all)
    _row("... before a worker had it", parts.before)
    _row("... worker idle between steps", parts.between)
    _row("... after the last step", parts.after_last)
    print(f"\n{result.uses}", flush=True)


def _row(name: str, seconds: Sequence[float] | np.ndarray[tuple[int], np.dtype[np.float64]]) -> None:
    if len(seconds):
        values = 1000 * np.percentile(np.asarray(seconds), [50, 90, 99, 100])
        print(f"| {name} | {' | '.join(f'{value:.1f}' for value in values)} |")


def search(options: Options) -> None:
    """Doubles the rate until it is too much, then halves the distance to within a twentieth."""
    good, bad, rate = 0.0, math.inf, options.rate
    while bad - good > good / 20:
        result = run(replace(options, rate=rate, seconds=SEARCH_SECONDS, ramp=SEARCH_RAMP))
        p99 = result.p99_ms()
        fine = result.clean and p99 <= SEARCH_P99_MS
        print(f"{rate:7.1f} requests a second: p99 {p99:8.1f} ms, {dict(result.statuses)}", flush=True)
        good, bad = (rate, bad) if fine else (good, rate)
        rate = 2 * good if bad == math.inf else (good + bad) / 2
    print(
        f"\nhighest rate with p99 of what is added within {SEARCH_P99_MS:g} ms: {good:.0f} a second",
        flush=True,
    )
    if good:
        options = replace(options, rate=good)
        show(options, run(options))


def main() -> None:
    """Reads the command line."""
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=float, default=1000.0, help="requests a second; where a search begins")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--ramp", type=float, default=10.0, help="seconds, of these")
    parser.add_argument("--words", type=int, default=12, help="of a prompt: about three tokens each")
    parser.add_argument("--answer", type=int, default=8, help="tokens")
    parser.add_argument("--workers", type=int, default=1 if cores < 8 else 2, help="stand-in GPUs")
    parser.add_argument("--gateways", type=int, default=max(1, cores // 2 - 1), help="processes")
    parser.add_argument("--clients", type=int, default=max(1, cores // 6), help="processes")
    parser.add_argument("--search", action="store_true", help="for the highest rate")
    given = vars(parser.parse_args())
    searching = given.pop("search")
    options = Options(**given)
    print(f"{machine()}; {options}", flush=True)
    if searching:
        search(options)
    else:
        show(options, run(options))


if __name__ == "__main__":
    main()
