"""Copies between the KV cache and host memory, and what they cost the steps beside them.

    python -m bench.host_cache --model meta-llama/Llama-3.1-8B --load-format dummy --host-cache-gb 16

It takes a worker's flags. Printed are GiB/s each way by the number of blocks in a move, one way at a time and
both at once, for neighbouring host blocks and for scattered ones; then milliseconds per decode step, two in
flight as in service, without moves and with saves, loads or both of as many blocks per step.
"""

import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from batchyard.config import WorkerSettings
from batchyard.errors import ConfigError
from batchyard.settings import load
from gpu_worker.host_cache import HostCache, Ids
from gpu_worker.mover import Mover
from gpu_worker.rows import RowLimits
from gpu_worker.runner import Runner
from gpu_worker.startup import start_runner
from protos.packing import pack_i32
from protos.sampling_pb2 import Sampling
from protos.step_pb2 import NewRow, StepBatch

SECONDS = 1.0  # of each measurement of copies
STEPS = 200
CONTEXT = 1024  # tokens of each row that decodes, if that many fit
BLOCKS_PER_MOVE = (1, 8, 64, 512)
BLOCKS_PER_STEP = (8, 64)
_GIB = 1 << 30


def repeat(copy: Callable[[], None], seconds: float = SECONDS) -> float:
    """How often `copy` ran in a second."""
    copy()
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        copy()
        count += 1
    return count / (time.perf_counter() - started)


def both(save: Callable[[], None], load: Callable[[], None]) -> tuple[float, float]:
    """How often each ran in a second, side by side."""
    rates = [0.0, 0.0]

    def run(n: int, copy: Callable[[], None]) -> None:
        rates[n] = repeat(copy)

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate((save, load))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return rates[0], rates[1]


def print_bandwidth(host: HostCache, limits: RowLimits, block_bytes: int) -> None:
    """The table of copies. Saves and loads use different halves of both memories."""
    random = np.random.default_rng(0)
    print("blocks  host ids      save GiB/s  load GiB/s  both at once: save  load")
    most = min(limits.num_blocks, limits.num_host_blocks) // 2
    for count in (count for count in BLOCKS_PER_MOVE if count <= most):
        for name, order in (("neighbours", np.arange), ("scattered", random.permutation)):
            first, second = (order(most)[:count].astype(np.int32) + offset for offset in (0, most))
            blocks = random.permutation(most)[:count].astype(np.int32)

            def save(blocks: Ids = blocks, host_blocks: Ids = first) -> None:
                host.save(blocks, host_blocks)

            def load_back(blocks: Ids = blocks + most, host_blocks: Ids = second) -> None:
                host.load(blocks, host_blocks)

            gib = count * block_bytes / _GIB
            rates = [gib * rate for rate in (repeat(save), repeat(load_back), *both(save, load_back))]
            print(f"{count:6}  {name:10}  {rates[0]:12.2f}{rates[1]:12.2f}{rates[2]:19.2f}{rates[3]:6.2f}")


def decode_ms(runner: Runner, mover: Mover, saves: int, loads: int) -> list[float]:
    """Milliseconds between the results of decode steps with that many moves in each."""
    limits = runner.rows.limits
    mover.drain()
    runner.reset()
    first = StepBatch(step=1, new_rows=_rows(limits))
    prompts = [row.row for row in first.new_rows]
    first.chunk_rows, first.chunk_lens = pack_i32(prompts), pack_i32([1] * len(prompts))
    runner.execute(first, time.perf_counter_ns()).result()
    in_flight, ms, last = deque[Callable[[], object]](), [], time.perf_counter()
    for step in range(2, STEPS + 2):
        batch = StepBatch(step=step)
        _add_moves(batch, limits, saves, loads)
        in_flight.append(runner.execute(batch, time.perf_counter_ns()).result)
        mover.start(batch, lambda _: None, _fail)
        if len(in_flight) == 2:
            in_flight.popleft()()
            now = time.perf_counter()
            ms.append(1e3 * (now - last))
            last = now
    in_flight.popleft()()
    return ms[10:]


def _rows(limits: RowLimits) -> list[NewRow]:
    """As many rows as there are, each with a long context that nobody computed: what it says is nonsense."""
    known = min(CONTEXT, limits.max_model_len - STEPS - 2)
    if known < 1:
        raise ConfigError(f"--max-model-len must be above {STEPS + 2}")
    blocks = pack_i32(list(range(-(-(known + STEPS + 2) // limits.block_size))))
    return [
        NewRow(
            row=row,
            tokens=pack_i32([0] * known),
            prompt_len=known,
            computed=known - 1,
            block_ids=blocks,
            sampling=Sampling(top_p=1, repetition_penalty=1),
        )
        for row in range(limits.max_rows)
    ]


def _add_moves(batch: StepBatch, limits: RowLimits, saves: int, loads: int) -> None:
    # From the ends of both memories: nothing that the rows read.
    if saves:
        batch.saved_blocks = pack_i32([limits.num_blocks - 1 - n for n in range(saves)])
        batch.saved_to = pack_i32([limits.num_host_blocks - 1 - n for n in range(saves)])
    if loads:
        batch.loaded_blocks = pack_i32([limits.num_blocks - 1 - saves - n for n in range(loads)])
        batch.loaded_from = pack_i32([limits.num_host_blocks - 1 - saves - n for n in range(loads)])


def _fail(error: Exception) -> None:
    raise error


def print_steps(runner: Runner, mover: Mover) -> None:
    """The table of steps."""
    print("saves  loads  in each decode step: p50 ms   p99 ms  mean ms")
    for count in BLOCKS_PER_STEP:
        for saves, loads in ((0, 0), (count, 0), (0, count), (count, count)):
            ms = sorted(decode_ms(runner, mover, saves, loads))
            p50, p99 = ms[len(ms) // 2], ms[len(ms) * 99 // 100]
            print(f"{saves:5}  {loads:5}  {p50:28.3f} {p99:8.3f} {statistics.mean(ms):8.3f}")


def main(argv: Sequence[str]) -> None:
    """Prints both tables."""
    settings = load(WorkerSettings, argv, os.environ)
    began = time.perf_counter()
    runner, description, host = start_runner(settings, lambda: None)
    if host is None:
        raise ConfigError("give --host-cache-gb")
    limits = runner.rows.limits
    block_bytes = int(settings.host_cache_gb * _GIB) // host.num_blocks
    print(
        f"{description.device}: {limits.num_blocks} blocks of {block_bytes / 1024:.0f} KiB, "
        f"{host.num_blocks} on the host, ready in {time.perf_counter() - began:.1f} s"
    )
    print_bandwidth(host, limits, block_bytes)
    mover = Mover(host)
    print_steps(runner, mover)
    mover.shutdown()


if __name__ == "__main__":
    main(sys.argv[1:])
