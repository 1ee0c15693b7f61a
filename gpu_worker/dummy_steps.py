"""Steps of made-up requests, through the runner's real path: to measure memory, and to compile kernels."""

import time
from collections.abc import Callable, Iterator, Sequence

from gpu_worker.rows import RowLimits
from gpu_worker.runner import Runner
from protos.packing import pack_i32
from protos.sampling_pb2 import Sampling
from protos.step_pb2 import NewRow, StepBatch

_GREEDY = Sampling(top_p=1, repetition_penalty=1)
# Everything there is in the sampler, at once.
_DEMANDING = Sampling(
    temperature=1, top_p=0.9, min_p=0.01, repetition_penalty=1.1, presence_penalty=0.1, logprobs=5
)
_TOP_K = Sampling(temperature=1, top_p=0.9, top_k=50, repetition_penalty=1)

# Tokens: of a context long enough that kernels split its keys, and of a chunk behind it, too short to fill a
# device.
_LONG = 16_384
_CHUNK = 16


def largest_step(limits: RowLimits) -> StepBatch:
    """The step that takes the most memory: all the tokens it may have, all rows sampling with everything."""
    lens = []
    left = limits.max_batched_tokens
    for others in reversed(range(limits.max_rows)):
        lens.append(min(limits.max_model_len, left - others))
        left -= lens[-1]
    return _batch(limits, 1, [(length, 0) for length in lens], _DEMANDING)


def warm_up(runner: Runner, stop: Callable[[], None]) -> None:
    """Runs steps of every kind that requests may bring, so that none of them waits for a kernel to compile.

    `stop` is called between steps, and may raise.
    """
    for batches in _scenarios(runner.rows.limits):
        runner.reset()
        for batch in batches:
            stop()
            runner.execute(batch, time.perf_counter_ns()).result()
    runner.reset()


def warm_up_briefly(runner: Runner) -> None:
    """One small step, where nothing is compiled."""
    runner.execute(_batch(runner.rows.limits, 1, [(1, 0)], _GREEDY), time.perf_counter_ns()).result()
    runner.reset()


def _scenarios(limits: RowLimits) -> Iterator[Iterator[StepBatch]]:
    room = limits.max_model_len - 2  # for two steps of decode
    short, long = max(1, min(8, room)), max(1, min(_LONG, room))
    chunk = min(_CHUNK, long, limits.max_batched_tokens)
    yield _prefill_and_decode(limits, [(short, 0)], _GREEDY)
    yield _prefill_and_decode(limits, [(short, short - 1)] * limits.max_rows, _GREEDY)
    yield _prefill_and_decode(limits, [(short, short - 1)] * limits.max_rows, _DEMANDING)
    yield _prefill_and_decode(limits, [(short, short - 1)] * limits.max_rows, _TOP_K)
    yield _prefill_and_decode(limits, [(long, long - chunk)], _GREEDY)
    yield iter([largest_step(limits)])


def _prefill_and_decode(
    limits: RowLimits, rows: Sequence[tuple[int, int]], sampling: Sampling
) -> Iterator[StepBatch]:
    """`rows` are (known, computed): the rest is prefilled in one step, and up to two decodes follow."""
    yield _batch(limits, 1, rows, sampling)
    most = max(known for known, _ in rows)
    for step in range(min(2, limits.max_model_len - most)):
        yield StepBatch(step=step + 2)


def _batch(limits: RowLimits, step: int, rows: Sequence[tuple[int, int]], sampling: Sampling) -> StepBatch:
    # All of them write to block 0: what it holds means nothing.
    blocks = pack_i32([0] * limits.max_blocks_per_row)
    new_rows = [
        NewRow(
            row=row,
            tokens=pack_i32([0] * known),
            prompt_len=known,
            computed=computed,
            block_ids=blocks,
            sampling=sampling,
        )
        for row, (known, computed) in enumerate(rows)
    ]
    return StepBatch(
        step=step,
        new_rows=new_rows,
        chunk_rows=pack_i32(range(len(rows))),
        chunk_lens=pack_i32([known - computed for known, computed in rows]),
    )
