"""How long requests wait, prefill and decode, as the scheduler counts it."""

from scheduler.request_times import RequestTimes
from tests.scheduler.helpers import Client
from tests.scheduler.simulated_worker import SimulatedWorker
from tests.scheduler.test_core import running


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Asked:
    arrived = 0.0
    began_at = first_token_at = None


def test_each_phase_from_one_event_to_the_next():
    clock = Clock()
    times, request = RequestTimes(clock), Asked()
    for event, at in ((times.began, 2.0), (times.sampled, 5.0), (times.sampled, 8.0), (times.finished, 9.0)):
        clock.now = at
        event(request)
    spent = {name: (each.count, each.sum) for name, each in vars(times).items() if name != "_clock"}
    assert spent == {"queue": (1, 2.0), "prefill": (1, 3.0), "decode": (1, 4.0)}


def test_what_began_elsewhere_is_not_counted():
    times, request = RequestTimes(Clock()), Asked()
    times.sampled(request)
    times.finished(request)
    assert times.prefill.count == times.decode.count == 0


async def test_every_request_once_however_often_it_is_paused():
    async with running(SimulatedWorker(max_rows=4)) as (scheduler, _):
        client = Client(scheduler)
        for number in range(4):
            client.submit(number, [number + 1] * 9, 60)
        await client.until(lambda: len(client.tokens[0]) > 5)
        for number in (4, 5):
            client.submit(number, [number + 1] * 9, 12, priority=-1)
        await client.all_finished()
        assert scheduler.preemptions
        times = scheduler.times
        assert times.queue.count == times.prefill.count == times.decode.count == 6
        (lane,) = scheduler.lanes
        assert lane.tally.rows.count == lane.tally.steps
        assert lane.tally.step_tokens.sum == lane.tally.prompt_tokens + lane.tally.answer_tokens
        assert lane.tally.prompt_tokens >= 6 * 9
