"""What clients see of the cache when things die: `python -m bench.restart`.

Real processes on this machine: a Redis, CPU workers with the demo model, and a scheduler, asked over its own
protocol by clients that never pause. A question is one of 32 common beginnings of 256 tokens and 32 tokens of
its own; 12 tokens are answered, greedily. One after another:

    calm        nothing
    scheduler   killed and started again. Requests it had go on
    worker      the first one is killed and started again
    flush       Redis forgets everything, once a second
    cut off     Redis is stopped, and goes on
    calm again  nothing

In the end every question is asked again of workers that start anew, with the cache switched off, and the
answers are compared. The time from token to token is what a step takes, as a client sees it.
"""

import argparse
import asyncio
import itertools
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog

from batchyard.errors import BatchyardError, SchedulerLost
from bench.fleet import Fleet, names
from gateway.link import SchedulerLink
from protos.packing import pack_i32
from protos.sampling_pb2 import Sampling
from protos.scheduling_pb2 import Submit

COMMON, COMMON_TOKENS, OWN_TOKENS, ANSWER_TOKENS = 32, 256, 32, 12
VOCABULARY = 4000  # ids that the demo model has
FIRST = 100  # requests after an event by which the hit rate is to be back


@dataclass(frozen=True, slots=True)
class Reply:
    """To question `number`. Times in seconds."""

    number: int
    asked: float
    tokens: tuple[int, ...]
    cached: int
    gaps: tuple[float, ...]  # from token to token


@dataclass(frozen=True, slots=True)
class Window:
    """A part of the run: when it began and ended."""

    name: str
    began: float
    ended: float


def question(number: int) -> list[int]:
    """Token ids."""
    own = np.random.default_rng(number)
    common = np.random.default_rng(10**9 + int(own.integers(COMMON)))
    parts = common.integers(10, VOCABULARY, COMMON_TOKENS), own.integers(10, VOCABULARY, OWN_TOKENS)
    return [int(token) for part in parts for token in part]


class Clients:
    """Ask one question after another, each its own, until they are told to stop."""

    def __init__(self, link: SchedulerLink, count: int) -> None:
        self.replies: list[Reply] = []
        self.failed: list[str] = []
        self._link = link
        self._numbers = itertools.count()
        self._stop = False
        self._tasks = [asyncio.create_task(self._ask_on()) for _ in range(count)]

    async def stop(self) -> None:
        """Returns when all have their last answers."""
        self._stop = True
        await asyncio.gather(*self._tasks)

    async def _ask_on(self) -> None:
        while not self._stop:
            number = next(self._numbers)
            try:
                self.replies.append(await ask(self._link, number))
            except BatchyardError as error:
                self.failed.append(str(error))


async def ask(link: SchedulerLink, number: int) -> Reply:
    """Asks question `number`. Raises BatchyardError."""
    prompt = question(number)
    submit = Submit(
        request_id=str(number),
        tokens=pack_i32(prompt),
        prompt_len=len(prompt),
        max_tokens=ANSWER_TOKENS,
        sampling=Sampling(top_p=1.0, repetition_penalty=1.0),
    )
    asked, cached = time.monotonic(), 0
    tokens: list[int] = []
    times: list[float] = []
    with link.submit(submit) as subscription:
        async for update in subscription:
            cached = cached or update.cached_tokens
            if update.token_ids:
                tokens += update.token_ids
                times.append(time.monotonic())
    return Reply(number, asked, tuple(tokens), cached, tuple(np.diff(times).tolist()))


async def ready(link: SchedulerLink, workers: int) -> None:
    """Returns when so many workers are connected."""
    while True:
        with suppress(SchedulerLost):
            description = await link.describe()
            if sum(worker.connected for worker in description.workers) == workers:
                return
        await asyncio.sleep(0.05)


async def measure(fleet: Fleet, options: argparse.Namespace) -> None:
    """Plays the run, and prints its table."""
    mirrored = ("--redis", fleet.redis_url)
    await fleet.start_redis()
    for name in (*names(options.workers), "scheduler"):
        fleet.start(name, *(mirrored if name == "scheduler" else ()))

    async def scheduler() -> None:
        fleet.kill("scheduler")
        fleet.start("scheduler", *mirrored)
        await asyncio.sleep(options.seconds)

    async def worker() -> None:
        fleet.kill("worker-0")
        fleet.start("worker-0")
        await asyncio.sleep(options.seconds)

    async def flush() -> None:
        for _ in range(options.seconds):
            await fleet.flush_redis()
            await asyncio.sleep(1)

    async def cut_off() -> None:
        fleet.signal("redis", signal.SIGSTOP)
        await asyncio.sleep(options.seconds)
        fleet.signal("redis", signal.SIGCONT)

    async def calm() -> None:
        await asyncio.sleep(options.seconds)

    async with SchedulerLink([fleet.scheduler_address]) as link:
        await ready(link, options.workers)
        clients = Clients(link, options.clients)
        while len(clients.replies) < options.warm_up:
            await asyncio.sleep(0.1)
        windows = [await _window("calm", calm), await _window("scheduler", scheduler)]
        windows += [await _window("worker", worker)]
        await ready(link, options.workers)
        windows += [await _window("flush", flush), await _window("cut off", cut_off)]
        windows += [await _window("calm again", calm)]
        await clients.stop()
    _table(windows, clients.replies)
    wrong = await _wrong(fleet, clients.replies, options)
    print(f"\n{len(clients.replies)} requests, {len(clients.failed)} failed; {wrong} answers differ")
    print("\n".join(sorted(set(clients.failed))))


async def _window(name: str, happens: Callable[[], Awaitable[None]]) -> Window:
    began = time.monotonic()
    await happens()
    return Window(name, began, time.monotonic())


async def _wrong(fleet: Fleet, replies: Sequence[Reply], options: argparse.Namespace) -> int:
    """How many of the answers are others without a cache."""
    for name in (*names(options.workers), "scheduler"):
        fleet.kill(name)
        fleet.start(name, *(("--no-enable-prefix-caching",) if name == "scheduler" else ()))
    wrong = 0
    async with SchedulerLink([fleet.scheduler_address]) as link:
        await ready(link, options.workers)
        for start in range(0, len(replies), options.clients):
            batch = replies[start : start + options.clients]
            again = await asyncio.gather(*(ask(link, reply.number) for reply in batch))
            wrong += sum(one.tokens != other.tokens for one, other in zip(batch, again, strict=True))
    return wrong


def _table(windows: Sequence[Window], replies: Sequence[Reply]) -> None:
    print(f"| | requests | hits | hits of the first {FIRST} | token to token p50 | p99 | most |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for window in windows:
        mine = [reply for reply in replies if window.began <= reply.asked < window.ended]
        mine.sort(key=lambda reply: reply.asked)
        gaps = 1000 * np.array([gap for reply in mine for gap in reply.gaps])
        p50, p99 = np.percentile(gaps, [50, 99])
        cells = [window.name, str(len(mine)), f"{_hits(mine):.1%}", f"{_hits(mine[:FIRST]):.1%}"]
        cells += [f"{p50:.1f} ms", f"{p99:.1f} ms", f"{gaps.max():.0f} ms"]
        print(f"| {' | '.join(cells)} |")


def _hits(replies: Sequence[Reply]) -> float:
    """Share of prompt tokens that were not computed."""
    return sum(reply.cached for reply in replies) / (len(replies) * (COMMON_TOKENS + OWN_TOKENS))


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--blocks", type=int, default=1000, help="of 16 tokens, in each worker's cache")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--warm-up", type=int, default=300, help="requests before anything is measured")
    parser.add_argument("--seconds", type=int, default=30, help="of each part")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    with tempfile.TemporaryDirectory(prefix="batchyard-restart-") as folder:
        fleet = Fleet(Path(folder), options.workers, options.blocks)
        try:
            asyncio.run(measure(fleet, options))
        finally:
            fleet.close()


if __name__ == "__main__":
    main()
