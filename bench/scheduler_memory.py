"""Whether the scheduler's memory is flat: `python -m bench.scheduler_memory`.

The scheduler is the real one, before two simulated workers as fast as an H200 with llama-8b, in virtual time:
1,000 requests a second, no two alike. Once every block has been written, what is new takes the place of what
is old, and memory must stay where it is. Two minutes for the 160,000 requests.
"""

import argparse
import asyncio
import gc
import os

import numpy as np
import structlog
from opentelemetry.trace import NoOpTracer

from bench.simulation.fleet import OPTIONS
from bench.simulation.stand_in import NUM_BLOCKS
from bench.simulation.virtual_time import run
from bench.simulation.worker import SimulatedTransport, SimulatedWorker
from bench.stand_ins import use_of
from protos.packing import pack_i32
from protos.sampling_pb2 import Sampling
from protos.scheduling_pb2 import Submit
from scheduler.core import Scheduler
from scheduler.session import Session
from scheduler.tracing import RequestSpans

_RATE = 1000  # a second
_PROMPT, _ANSWER, _VOCAB = 36, 8, 6000  # tokens


async def measure(requests: int, every: int) -> None:
    """Prints a line of the table after `every` requests."""
    transports = [SimulatedTransport(SimulatedWorker(f"worker-{n}", NUM_BLOCKS)) for n in range(2)]
    clock = asyncio.get_running_loop().time
    scheduler = Scheduler(transports, OPTIONS, RequestSpans(NoOpTracer()), clock=clock)
    serving = asyncio.create_task(scheduler.run())
    while not all(lane.connected for lane in scheduler.lanes):
        await asyncio.sleep(0.001)
    session = scheduler.sessions.open()
    reading = asyncio.create_task(_read(session))
    random = np.random.default_rng(0)
    print("| requests | blocks that hold nothing | MiB |\n|--:|--:|--:|")
    for number in range(requests + 1):
        if number % every == 0:
            gc.collect()
            free = sum(worker.free_blocks for worker in scheduler.describe().workers)
            print(f"| {number:,} | {free:,} | {use_of(os.getpid()).mib:.1f} |", flush=True)
        await asyncio.sleep(1 / _RATE)
        scheduler.submit(session, _request(number, random))
    for task in (serving, reading):
        task.cancel()
        await asyncio.wait([task])


def _request(number: int, random: np.random.Generator) -> Submit:
    return Submit(
        id=number,
        request_id=str(number),
        tokens=pack_i32(random.integers(0, _VOCAB, _PROMPT)),
        prompt_len=_PROMPT,
        max_tokens=_ANSWER,
        sampling=Sampling(temperature=1.0, top_p=1.0, repetition_penalty=1.0),
    )


async def _read(session: Session) -> None:
    while await session.outbox.get():
        pass


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=160_000)
    parser.add_argument("--every", type=int, default=20_000, help="requests, for a line of the table")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    run(measure(options.requests, options.every))


if __name__ == "__main__":
    main()
