"""The scheduler's spans of a request: its waits by name, and its rows."""

import pytest

from batchyard.spans import new_trace, parse_traceparent
from scheduler.prompt_log import PromptLog
from tests.scheduler.helpers import Client
from tests.scheduler.simulated_worker import SimulatedWorker, answer
from tests.scheduler.test_core import running
from tests.scheduler.test_resubmitted import resubmit

MS = 1_000_000
PARENT = new_trace(sampled=True)
TRACED = {"traceparent": PARENT.traceparent}


def names(spans):
    return [span.name for span in spans]


class Watched(SimulatedWorker):
    """Keeps the trace contexts of its rows, and which traces it is to keep."""

    def __init__(self, **shape):
        super().__init__(**shape)
        self.contexts = []
        self.kept = []

    def execute(self, batch):
        self.contexts += [row.traceparent for row in batch.new_rows]
        self.kept += [int.from_bytes(each, "big") for each in batch.keep]
        return super().execute(batch)


async def test_a_wait_a_match_and_a_row():
    spans, worker = [], Watched(block_size=4)
    async with running(worker, export=spans.append) as (scheduler, _):
        client = Client(scheduler)
        client.submit(1, range(10), 5)
        await client.all_finished()
        assert spans == []  # it has no trace context
        client.submit(2, range(10), 5, **TRACED)
        await client.all_finished()
        queue, match, run = spans
        assert names(spans) == ["scheduler.queue", "prefix.match", "scheduler.run"]
        assert {(span.context.trace_id, span.parent_id) for span in spans} == {
            (PARENT.trace_id, PARENT.span_id)
        }
        assert queue.start_ns <= queue.end_ns == match.start_ns <= match.end_ns == run.start_ns <= run.end_ns
        assert queue.attributes == {
            "batchyard.request_id": "request-2",
            "batchyard.requests_before": 0,
            "gen_ai.usage.input_tokens": 10,
        }
        assert match.attributes == {"batchyard.device_tokens": 8, "batchyard.host_tokens": 0}
        assert run.attributes == {
            "batchyard.worker_id": "sim",
            "batchyard.ended": "length",
            "batchyard.chunks": 1,
        }
        # The worker's spans are to be below that of the row.
        assert worker.contexts == ["", run.context.traceparent]


async def test_a_preempted_request_waits_by_that_name():
    spans = []
    async with running(SimulatedWorker(max_rows=1), export=spans.append) as (scheduler, _):
        client = Client(scheduler)
        client.submit(1, range(4), 40, **TRACED)
        await client.until(lambda: client.tokens[1])
        client.submit(2, range(4), 4, priority=-1)
        await client.all_finished()
        assert names(spans) == [
            "scheduler.queue",
            "prefix.match",
            "scheduler.run",
            "preempted",
            "prefix.match",
            "scheduler.run",
        ]
        assert spans[2].attributes["batchyard.ended"] == "preempted"
        assert spans[3].attributes["batchyard.cause"] == "priority"
        assert spans[3].attributes["batchyard.prompt_tokens"] == 4  # of who came in its place
        assert spans[3].start_ns == spans[2].end_ns
        assert client.finished[1].timing.preemptions == 1


@pytest.mark.parametrize(
    ("leave", "name", "cause"),
    [("break_off", "retry", "WorkerLost"), ("drain", "migrate", "")],
)
async def test_a_request_whose_worker_goes_waits_by_that_name(leave, name, cause):
    spans = []
    workers = SimulatedWorker(worker_id="a"), SimulatedWorker(worker_id="b")
    async with running(*workers, export=spans.append) as (scheduler, transports):
        client = Client(scheduler)
        client.submit(1, range(4), 40, **TRACED)
        await client.until(lambda: client.tokens[1])
        (first,) = [lane for lane in scheduler.lanes if lane.rows_taken]
        if leave == "drain":
            first.drain()
        else:
            transports[scheduler.lanes.index(first)].stream.break_off()
        await client.all_finished()
        assert client.tokens[1] == answer(range(4), 40)
        assert names(spans)[2:] == ["scheduler.run", name, "prefix.match", "scheduler.run"]
        lost, wait, _, again = spans[2:]
        assert wait.attributes == {"batchyard.cause": cause, "batchyard.worker_id": first.name}
        assert wait.start_ns == lost.end_ns
        assert again.attributes["batchyard.worker_id"] != first.name


async def test_what_never_ran_has_waited():
    spans = []
    async with running(SimulatedWorker(max_rows=1), export=spans.append) as (scheduler, _):
        client = Client(scheduler)
        client.submit(1, range(4), 200)
        await client.until(lambda: client.tokens[1])
        client.submit(2, range(4), 4, **TRACED)
        scheduler.cancel(client.session, 2)
        (wait,) = spans
        assert (wait.name, wait.attributes["batchyard.ended"]) == ("scheduler.queue", "cancelled")
        assert wait.attributes["batchyard.requests_before"] == 0


async def test_a_resubmitted_request_says_so():
    spans = []
    async with running(SimulatedWorker(), export=spans.append) as (scheduler, _):
        client = Client(scheduler)
        resubmit(client, 1, [1, 2, 3], answer([1, 2, 3], 20)[:5], 20, **TRACED)
        await client.all_finished()
        assert spans[0].attributes["batchyard.resubmitted"] is True


async def test_what_is_to_be_kept_is_exported_here_and_by_the_workers():
    spans, worker = [], Watched()
    unsampled = new_trace(sampled=False)
    async with running(worker, export=spans.append) as (scheduler, _):
        client = Client(scheduler)
        client.submit(1, range(4), 4, traceparent=unsampled.traceparent)
        await client.all_finished()
        assert spans == []
        assert parse_traceparent(worker.contexts[0]).sampled is False
        scheduler.keep([unsampled.trace_id])
        assert names(spans) == ["scheduler.queue", "prefix.match", "scheduler.run"]
        client.submit(2, range(4), 4)
        await client.all_finished()
        assert worker.kept == [unsampled.trace_id]


def test_the_log_of_prompts_tells_what_was_computed_since():
    prompts = PromptLog()
    assert prompts.since(0) == (0, 0)
    prompts.answered(10 * MS, 4 * MS, 100)
    prompts.answered(20 * MS, 8 * MS, 200)
    assert prompts.since(20 * MS) == (0, 0)
    assert prompts.since(15 * MS) == (5, 200)  # the rest of a step
    assert prompts.since(0) == (12, 300)
    for n in range(1000):
        prompts.answered((30 + n) * MS, MS, 1)
    assert prompts.since(0).tokens == 256
