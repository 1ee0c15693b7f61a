"""Where the time of a request goes."""

import pytest

from protos.scheduling_pb2 import Timing
from scheduler.prompt_log import PromptLog
from scheduler.timeline import Loss, Timeline
from tests.scheduler.helpers import Client
from tests.scheduler.simulated_worker import SimulatedWorker
from tests.scheduler.test_core import running

MS = 1_000_000


class Clock:
    def __init__(self):
        self.ms = 0

    def __call__(self):
        return self.ms * MS


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def timeline(clock):
    return Timeline(clock=clock)


def phases(timing):
    return timing.queued_ms, timing.requeued_ms, timing.prefill_ms, timing.decode_ms


def test_every_moment_is_in_a_phase(clock, timeline):
    clock.ms = 5
    timeline.got_row("w", 16, 32, 0, PromptLog())
    clock.ms = 15
    timeline.chunks = 3
    timeline.first_token()
    clock.ms = 40
    assert phases(timeline.timing()) == (5, 0, 10, 25)
    clock.ms = 45
    timeline.end("stop")
    clock.ms = 99
    assert timeline.timing() == Timing(
        queued_ms=5,
        prefill_ms=10,
        decode_ms=30,
        device_tokens=16,
        host_tokens=32,
        chunks=3,
        worker_id="w",
    )


def test_a_row_lost_is_waited_for_again(clock, timeline):
    for loss in Loss:
        clock.ms += 1
        timeline.got_row("w", 16, 0, 0, PromptLog())
        clock.ms += 10
        timeline.lost_row(loss)
        timeline.lost_row(Loss.WORKER_LOST)  # it has none
    clock.ms += 100
    timing = timeline.timing()
    assert phases(timing) == (103, 102, 30, 0)
    assert (timing.preemptions, timing.retries, timing.migrations) == (1, 1, 1)


def test_what_the_first_row_found_counts(timeline):
    timeline.got_row("a", 16, 0, 0, PromptLog())
    timeline.lost_row(Loss.PREEMPTED)
    timeline.got_row("b", 32, 16, 0, PromptLog())
    timing = timeline.timing()
    assert (timing.device_tokens, timing.host_tokens, timing.worker_id) == (16, 0, "b")


def test_a_clock_that_is_set_back_takes_nothing_away(clock, timeline):
    clock.ms = 5
    timeline.got_row("w", 0, 0, 0, PromptLog())
    clock.ms = 2
    timeline.first_token()
    clock.ms = 4
    assert phases(timeline.timing()) == (5, 0, 0, 2)


async def test_it_comes_with_the_end_of_a_request():
    async with running(SimulatedWorker(budget=8, block_size=4)) as (scheduler, _):
        client = Client(scheduler)
        client.submit(1, range(20), 5)
        await client.all_finished()
        client.submit(2, range(20), 5)
        await client.all_finished()
        first, second = (client.finished[id].timing for id in (1, 2))
        assert (first.chunks, first.device_tokens, first.worker_id) == (3, 0, "sim")
        assert (second.chunks, second.device_tokens) == (1, 16)
        assert first.prefill_ms > 0
        assert first.decode_ms > 0
