"""How fast a full service says no, and whether it keeps its appointments: `python -m bench.refusals`.

Gateway and scheduler are real, the worker is a stand-in with the timing of an H200 and llama-8b. Requests of
1,024 + 128 tokens come at random, five times as many as it can do, and the queue holds two seconds of them.
Who is refused comes back once, when Retry-After says so: that goes on long after the last new client.
"""

import argparse
import asyncio
import json
import os
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import uvloop

from bench.lean_client import Client, Reply
from bench.request_rate import arrivals
from bench.stand_ins import machine, stand_ins

CAPACITY = 33.0  # requests a second, as bench.fairness measures it
PROMPT, ANSWER = 1024, 128  # tokens
QUEUE_SECONDS = 2.0
_REFUSED = (429, 503)


@dataclass(frozen=True, slots=True)
class Options:
    """The command line."""

    factor: float  # times what the service can do
    seconds: float  # in which new clients come
    gateways: int


def body(number: int) -> bytes:
    """A request with a prompt of its own, as token ids."""
    prompt = random.Random(number).choices(range(300, 6000), k=PROMPT)
    asked = {"model": "demo", "prompt": prompt, "max_tokens": ANSWER, "ignore_eos": True, "stream": True}
    return json.dumps(asked).encode()


async def ask_all(options: Options, port: int) -> list[list[Reply]]:
    """The tries of each client: one, or two."""
    client = Client("127.0.0.1", port)
    loop = asyncio.get_running_loop()
    times = arrivals(options.factor * CAPACITY, options.seconds, 0.0, seed=0)
    bodies = [body(number) for number in range(len(times))]
    start = loop.time()

    async def ask(number: int) -> list[Reply]:
        await asyncio.sleep(start + times[number] - loop.time())
        tries = [await client.ask(f"client-{number}", bodies[number])]
        if tries[0].status in _REFUSED:
            await asyncio.sleep(tries[0].retry_after)
            tries.append(await client.ask(f"client-{number}-again", bodies[number]))
        return tries

    tries = await asyncio.gather(*map(ask, range(len(times))))
    client.close()
    return tries


def show(tries: Sequence[Sequence[Reply]]) -> None:
    """Prints what became of all."""
    replies = [reply for each in tries for reply in each]
    ended = Counter("broken off" if reply.broken else str(reply.status) for reply in replies)
    print(f"{len(tries):,} clients: " + ", ".join(f"{n:,} x {what}" for what, n in sorted(ended.items())))
    seconds = max(reply.last for reply in replies) - min(reply.sent for reply in replies)
    taken = [reply for reply in replies if reply.status == 200]
    print(f"{len(taken) / seconds:.1f} requests a second were answered, for {seconds:.0f} s\n")
    print("| milliseconds | p50 | p99 | most |\n|---|--:|--:|--:|")
    for name, values in (
        ("to a refusal", [reply.last - reply.sent for reply in replies if reply.status in _REFUSED]),
        ("to the first token, if taken", [reply.first - reply.sent for reply in taken]),
    ):
        cells = [f"{1000 * value:.1f}" for value in np.percentile(values or [0.0], [50, 99, 100])]
        print(f"| {name} | {' | '.join(cells)} |")
    again = [each[1] for each in tries if len(each) > 1]
    waits = [each[0].retry_after for each in tries if len(each) > 1]
    if again:
        share = sum(reply.status == 200 for reply in again) / len(again)
        print(f"\ntold to come back in {min(waits):.0f} to {max(waits):.0f} s, and let in then: {share:.1%}")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--factor", type=float, default=5.0, help="times what the service can do")
    parser.add_argument("--seconds", type=float, default=20.0, help="in which new clients come")
    parser.add_argument("--gateways", type=int, default=1 if len(os.sched_getaffinity(0)) < 8 else 2)
    options = Options(**vars(parser.parse_args()))
    print(f"{machine()}; {options}\n", flush=True)
    settings = {"max_queue_tokens": int(QUEUE_SECONDS * CAPACITY * PROMPT)}
    with stand_ins(1, options.gateways, settings) as fleet:
        show(uvloop.run(ask_all(options, fleet.port)))


if __name__ == "__main__":
    main()
