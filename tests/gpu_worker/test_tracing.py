"""Spans of traced requests, and of the steps they take part in."""

import pytest

from batchyard.spans import SpanRecorder, pack_trace_ids
from gpu_worker.launched import StepLoad
from gpu_worker.observers import FinishedStep
from gpu_worker.step_clock import StepTimes
from gpu_worker.tracing import WorkerSpans
from protos.packing import pack_i32
from protos.step_pb2 import StepResult
from tests.gpu_worker.helpers import batch, new_row

MS = 1_000_000
TRACE = 0x0AF7651916CD43DD8448EB211C80319C
PARENT = 0xB7AD6B7169203331
SAMPLED = f"00-{TRACE:032x}-{PARENT:016x}-01"
UNSAMPLED = f"00-{TRACE + 1:032x}-{PARENT:016x}-00"


class Steps:
    """Step n ends at n ms, and takes half of that."""

    def __init__(self):
        self.spans = []
        self.observer = WorkerSpans(SpanRecorder(self.spans.append), "worker-7")

    def observe(self, step, sampled=(), keep=(), graph="", **changes):
        message = batch(step, **changes)
        message.keep.extend(pack_trace_ids(keep))
        result = StepResult(step=step, rows=pack_i32(list(sampled)))
        times = StepTimes(queue_us=100, forward_us=400, sample_us=100, idle_us=0, ended_ns=step * MS)
        load = StepLoad(num_seqs=3, num_tokens=17, num_rows=4, num_blocks=9, graph=graph)
        self.observer.observe(FinishedStep(message, result, times, load))

    def named(self, name):
        return [span for span in self.spans if span.name == name]


@pytest.fixture
def steps():
    return Steps()


def entry(row, traceparent, tokens=8):
    return new_row(row, [1] * tokens, [0], traceparent=traceparent, request_id=f"request-{row}")


def test_prefill_and_decode_are_children_of_the_request(steps):
    steps.observe(1, new=[entry(0, SAMPLED)], chunks=[(0, 5)])
    steps.observe(2, chunks=[(0, 3)], sampled=[0])
    steps.observe(3, sampled=[0])
    steps.observe(4, sampled=[0])
    assert not steps.named("decode")
    steps.observe(5, freed=[0])
    (prefill,), (decode,) = steps.named("prefill"), steps.named("decode")
    for span in (prefill, decode):
        assert (span.context.trace_id, span.parent_id, span.context.sampled) == (TRACE, PARENT, True)
        assert span.attributes["batchyard.request_id"] == "request-0"
        assert span.attributes["batchyard.worker_id"] == "worker-7"
    assert (prefill.start_ns, prefill.end_ns) == (MS // 2, 2 * MS)
    assert (decode.start_ns, decode.end_ns) == (2 * MS, 4 * MS)
    assert decode.attributes["batchyard.tokens"] == 3
    assert decode.attributes["batchyard.first_step"] == 2


def test_a_chunk_tells_what_else_was_computed(steps):
    steps.observe(1, new=[entry(1, "")], chunks=[(1, 64)])
    steps.observe(2, chunks=[(1, 32)])
    steps.observe(3, new=[entry(0, SAMPLED)], chunks=[(1, 30), (0, 2)])
    steps.observe(4, chunks=[(1, 16)])
    steps.observe(5, chunks=[(0, 6)], sampled=[0, 1])
    steps.observer.reset()
    (prefill,) = steps.named("prefill")
    assert [(event.name, event.at_ns) for event in prefill.events] == [("chunk", 3 * MS), ("chunk", 5 * MS)]
    assert [dict(event.attributes) for event in prefill.events] == [
        {
            "batchyard.tokens": own,
            "batchyard.other_tokens": others,
            "batchyard.tokens_before": before,
            "batchyard.rows": 3,
            "batchyard.queue_ms": 0.1,
            "batchyard.step_ms": 0.5,
        }
        for own, others, before in ((2, 30, 32), (6, 0, 16))
    ]


def links(span):
    return [(link.trace_id, link.span_id) for link in span.links]


def test_a_step_that_prefills_has_a_span_of_its_own(steps):
    steps.observe(1, new=[entry(0, SAMPLED), entry(1, UNSAMPLED), entry(2, "")], chunks=[(0, 8), (1, 8)])
    steps.observe(2, chunks=[(2, 4)])
    (step,) = steps.named("step")
    assert step.parent_id == 0
    assert step.context.trace_id != TRACE
    assert links(step) == [(TRACE, PARENT)]
    assert (step.start_ns, step.end_ns) == (MS // 2, MS)
    assert dict(step.attributes) == {
        "batchyard.worker_id": "worker-7",
        "batchyard.step": 1,
        "batchyard.steps": 1,
        "batchyard.rows": 3,
        "batchyard.tokens": 17,
        "batchyard.graph": "none",
        "batchyard.queue_ms": 0.1,
        "batchyard.forward_ms": 0.4,
        "batchyard.sample_ms": 0.1,
        "batchyard.longest_ms": 0.5,
    }


def test_all_steps_are_told_together_for_a_while(steps):
    steps.observe(1, new=[entry(0, SAMPLED)], chunks=[(0, 8)], sampled=[0])
    for step in range(2, 352):
        steps.observe(step, sampled=[0], graph="decode")
    steps.observe(352, freed=[0])
    alone, first, second = steps.named("step")
    assert alone.attributes["batchyard.steps"] == 1
    assert [span.attributes["batchyard.step"] for span in (first, second)] == [1, 251]
    assert [span.attributes["batchyard.steps"] for span in (first, second)] == [250, 101]
    assert [span.attributes["batchyard.tokens"] for span in (first, second)] == [17 * 250, 17 * 101]
    assert [span.attributes["batchyard.graph"] for span in (first, second)] == ["decode,none", "decode"]
    assert (first.start_ns, first.end_ns) == (MS // 2, 250 * MS)
    assert links(first) == links(second) == [(TRACE, PARENT)]


def test_who_joins_is_linked_as_well(steps):
    other = SAMPLED.replace(f"{TRACE:032x}", f"{TRACE + 9:032x}")
    steps.observe(1, new=[entry(0, SAMPLED)], chunks=[(0, 8)], sampled=[0])
    steps.observe(2, new=[entry(1, other)], chunks=[(1, 8)], sampled=[0, 1])
    steps.observe(3, freed=[0], sampled=[1])
    steps.observe(4, freed=[1])
    *alone, together = steps.named("step")
    assert [links(span) for span in alone] == [[(TRACE, PARENT)], [(TRACE + 9, PARENT)]]
    assert links(together) == [(TRACE, PARENT), (TRACE + 9, PARENT)]
    assert together.attributes["batchyard.steps"] == 3


def test_what_is_not_sampled_is_exported_when_it_is_to_be_kept(steps):
    steps.observe(1, new=[entry(0, UNSAMPLED)], chunks=[(0, 8)], sampled=[0])
    steps.observe(2, sampled=[0])
    steps.observe(3, freed=[0], new=[entry(0, UNSAMPLED)], chunks=[(0, 8)], sampled=[0])
    assert steps.spans == []
    steps.observe(4, sampled=[0], keep=[TRACE, TRACE + 1])
    assert [span.name for span in steps.spans] == ["prefill", "decode"]
    steps.observe(5, freed=[0])
    assert [span.name for span in steps.spans] == ["prefill", "decode"] * 2


def test_what_has_no_trace_context_makes_nothing(steps):
    steps.observe(1, new=[entry(1, ""), entry(2, "nonsense")], chunks=[(1, 8), (2, 8)], sampled=[1])
    steps.observe(2, sampled=[1], freed=[1], keep=[TRACE])
    steps.observer.reset()
    assert steps.spans == []


def test_rows_given_up_end_their_spans(steps):
    steps.observe(1, new=[entry(0, SAMPLED), entry(1, SAMPLED)], chunks=[(0, 4), (1, 8)], sampled=[1])
    # The row's next request is another.
    steps.observe(2, freed=[0], new=[entry(0, SAMPLED)], chunks=[(0, 8)], sampled=[0, 1])
    assert len(steps.named("prefill")) == 1
    assert not steps.named("decode")
    steps.observer.reset()
    assert [span.attributes["batchyard.tokens"] for span in steps.named("decode")] == [2, 1]
    assert len(steps.named("prefill")) == 3
