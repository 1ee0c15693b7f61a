"""The scheduler's state as it tells it: to gateways, to operators, to tests."""

import time
from collections.abc import Sequence

from protos.scheduling_pb2 import Description, StepState, TenantState, WorkerState
from scheduler.fairness import Tenants
from scheduler.lane import Lane
from scheduler.tally import Tally
from scheduler.warming import Warming

STALLED_SECONDS = 10.0  # a worker that has owed an answer for so long is not expected to give it soon


def describe(lanes: Sequence[Lane], waiting: int, queue_tokens: int, warming: Warming) -> Description:
    """Counts over all workers; `waiting` are the requests not given to any of them yet.

    `queue_tokens` are those of all that have not begun to run.
    """
    workers = [lane.worker for lane in lanes if lane.connected and lane.worker]
    states = [_state(lane) for lane in lanes]
    return Description(
        ready=any(makes_progress(lane) and not warming.left(lane) for lane in lanes),
        warming=min((warming.left(lane) for lane in lanes if lane.takes_requests), default=0),
        max_model_len=max((worker.max_model_len for worker in workers), default=0),
        vocab_size=max((worker.vocab_size for worker in workers), default=0),
        waiting=waiting + sum(_waiting(lane) for lane in lanes),
        running=sum(len(lane.batcher.running) for lane in lanes if lane.batcher),
        workers=states,
        queue_tokens=queue_tokens,
    )


def describe_tenants(description: Description, tenants: Tenants, most: int) -> None:
    """Adds `most` of the tenants that have requests. It sorts them: not for those who ask all the time."""
    present = tenants.present()
    description.num_tenants = len(present)
    description.tenants.extend(
        TenantState(name=each.name, weight=each.weight, waiting=each.waiting, running=each.rows)
        for each in present[:most]
    )


def makes_progress(lane: Lane) -> bool:
    """Whether a token could come from this worker soon, were a request to come now."""
    return lane.takes_requests and lane.overdue <= STALLED_SECONDS


def _waiting(lane: Lane) -> int:
    return len(lane.waiting) + (len(lane.batcher.entrance.aside) if lane.batcher else 0)


def _state(lane: Lane) -> WorkerState:
    state = WorkerState(
        address=lane.address,
        connected=lane.connected,
        steps=lane.tally.steps,
        draining=lane.draining,
        weight=lane.weight,
        generated_tokens=lane.tally.tokens,
        tokens_per_second=lane.tally.rate.per_second(time.monotonic()),
        last_step=_last_step(lane.tally),
    )
    if lane.worker:
        state.worker_id = lane.worker.worker_id
        state.device = lane.worker.device
        state.max_rows = lane.worker.max_rows
        state.num_blocks = lane.worker.num_blocks
    if batcher := lane.batcher:
        state.rows = batcher.rows.taken
        state.steps_in_flight = lane.steps_in_flight
        state.free_blocks = batcher.pool.free
        state.held_blocks = batcher.pool.held
        state.cached_blocks = batcher.pool.cached
        state.seconds_since_step = time.monotonic() - lane.tally.last_result
    return state


def _last_step(tally: Tally) -> StepState | None:
    if (step := tally.last_step) is None:
        return None
    return StepState(
        rows=step.num_rows,
        tokens=step.num_tokens,
        prompt_tokens=step.num_prompt_tokens,
        busy_us=tally.last_busy_us,
    )
