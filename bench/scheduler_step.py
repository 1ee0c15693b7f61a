"""Microseconds of scheduler Python in a steady decode step, by rows: `python -m bench.scheduler_step`.

The worker's answer is made up at no cost to the scheduler; what is timed is composing a step, packing it, and
taking the answer up to the message for the gateway. The budget in docs/architecture.md is 300 µs at 256 rows.
"""

import statistics
import time

import numpy as np

from protos.packing import pack_i32
from protos.sampling_pb2 import Sampling
from protos.step_pb2 import StepResult
from scheduler.batcher import Batcher
from scheduler.block_pool import BlockPool
from scheduler.fairness import Tenants
from scheduler.preemption import Cause
from scheduler.queue import WaitingQueue
from scheduler.request import Request
from scheduler.request_times import RequestTimes
from scheduler.results import ResultHandler
from scheduler.rows import Rows
from scheduler.session import Sessions
from scheduler.tally import Tally

STEPS = 1000
PROMPT = 64


class _Unheard:
    def admitted(self, request: Request, cached_tokens: int) -> None: ...

    def preempted(self, request: Request, cause: Cause) -> None: ...


def measure(num_rows: int, caching: bool) -> list[float]:
    """Seconds of each of STEPS steady steps of `num_rows` decoding rows."""
    length = PROMPT + STEPS + 20
    rows = Rows(num_rows, length, 16)
    pool = BlockPool(num_rows * (length // 16 + 2))
    pool.follow()  # as with a mirror
    batcher = Batcher(rows, pool, num_rows * PROMPT, caching=caching, admissions=_Unheard())
    sessions = Sessions()
    session = sessions.open()
    tally = Tally()
    handler = ResultHandler(batcher, sessions, 1 << 17, RequestTimes(time.monotonic))
    tenants = Tenants()
    waiting, tenant = WaitingQueue(tenants), tenants.arriving("", 1.0)
    rng = np.random.default_rng(0)
    for n in range(num_rows):
        prompt = rng.integers(0, 1 << 17, PROMPT, dtype=np.int32)
        request = Request(
            session=session,
            id=n,
            request_id=str(n),
            tokens=prompt,
            prompt_len=PROMPT,
            max_tokens=length - PROMPT,
            sampling=Sampling(temperature=1.0),
            stop_ids=frozenset({1 << 20}),
            cache_salt="",
            arrival=n,
            tenant=tenant,
        )
        session.requests[n] = request
        waiting.push(request)
    tokens = pack_i32(rng.integers(0, 1 << 17, num_rows))
    seconds = []
    for _ in range(STEPS + 10):
        started = time.perf_counter()
        step = batcher.compose(waiting)
        assert step is not None
        sent = step.batch.SerializeToString()
        composed = time.perf_counter()
        result = StepResult(
            step=step.batch.step, rows=pack_i32(step.sampling), tokens=tokens, num_tokens=step.num_tokens
        )
        assert sent
        answered = time.perf_counter()
        handler.apply(step, result)
        batcher.settle(result.step)
        tally.answered(step, num_rows, busy_us=1000)
        pool.confirmed(result.step)
        sessions.flush()
        seconds.append(time.perf_counter() - answered + composed - started)
        message = session.outbox.get_nowait()
        assert message
        message.SerializeToString()
    return seconds[10:]


def main() -> None:
    """Prints the table."""
    print("rows  caching   p50 µs   p99 µs  mean µs")
    for num_rows in (1, 16, 64, 256, 512):
        for caching in (True, False):
            us = sorted(1e6 * s for s in measure(num_rows, caching))
            p50, p99 = us[len(us) // 2], us[len(us) * 99 // 100]
            print(f"{num_rows:4}  {caching!s:7} {p50:8.0f} {p99:8.0f} {statistics.mean(us):8.0f}")


if __name__ == "__main__":
    main()
