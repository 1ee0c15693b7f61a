"""Spans of traced requests, and of the steps they take part in."""

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gpu_worker.launched import StepLoad
from gpu_worker.observers import FinishedStep
from gpu_worker.step_clock import StepTimes
from gpu_worker.tracing import WorkerSpans
from protos.packing import pack_i32
from protos.step_pb2 import StepResult
from tests.gpu_worker.helpers import batch, new_row

TRACE = "0af7651916cd43dd8448eb211c80319c"
SAMPLED = f"00-{TRACE}-b7ad6b7169203331-01"
UNSAMPLED = f"00-{TRACE}-b7ad6b7169203331-00"


class Steps:
    """Step n ends at n ms, and takes half of that."""

    def __init__(self):
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.observer = WorkerSpans(provider.get_tracer("test"), "worker-7")
        self.provider = provider

    def observe(self, step, sampled=(), **changes):
        message = batch(step, **changes)
        result = StepResult(step=step, rows=pack_i32(list(sampled)))
        times = StepTimes(queue_us=100, forward_us=400, sample_us=100, idle_us=0, ended_ns=step * 1_000_000)
        load = StepLoad(num_seqs=3, num_tokens=17, num_rows=4, num_blocks=9)
        self.observer.observe(FinishedStep(message, result, times, load))

    def named(self, name):
        return [span for span in self.exporter.get_finished_spans() if span.name == name]


@pytest.fixture
def steps():
    steps = Steps()
    yield steps
    steps.provider.shutdown()


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
        assert f"{span.context.trace_id:032x}" == TRACE
        assert f"{span.parent.span_id:016x}" == "b7ad6b7169203331"
        assert span.attributes["batchyard.request_id"] == "request-0"
        assert span.attributes["batchyard.worker_id"] == "worker-7"
    assert (prefill.start_time, prefill.end_time) == (500_000, 2_000_000)
    events = [(event.name, event.attributes["batchyard.tokens"], event.timestamp) for event in prefill.events]
    assert events == [("chunk", 5, 1_000_000), ("chunk", 3, 2_000_000)]
    assert (decode.start_time, decode.end_time) == (2_000_000, 4_500_000)
    assert decode.attributes["batchyard.tokens"] == 3


def test_a_step_is_linked_to_the_requests_in_it(steps):
    steps.observe(1, new=[entry(0, SAMPLED), entry(1, UNSAMPLED), entry(2, "")], chunks=[(0, 8), (1, 8)])
    steps.observe(2, chunks=[(2, 4)])
    (step,) = steps.named("step")
    assert step.parent is None
    assert f"{step.context.trace_id:032x}" != TRACE
    assert [f"{link.context.trace_id:032x}" for link in step.links] == [TRACE]
    assert (step.start_time, step.end_time) == (500_000, 1_000_000)
    assert dict(step.attributes) == {
        "batchyard.worker_id": "worker-7",
        "batchyard.step": 1,
        "batchyard.rows": 3,
        "batchyard.tokens": 17,
        "batchyard.queue_ms": 0.1,
        "batchyard.forward_ms": 0.4,
        "batchyard.sample_ms": 0.1,
    }


def test_what_is_not_sampled_makes_nothing(steps):
    steps.observe(
        1, new=[entry(0, UNSAMPLED), entry(1, ""), entry(2, "nonsense")], chunks=[(0, 8)], sampled=[0]
    )
    steps.observe(2, sampled=[0], freed=[1])
    steps.observer.reset()
    assert steps.exporter.get_finished_spans() == ()


def test_rows_given_up_end_their_spans(steps):
    steps.observe(1, new=[entry(0, SAMPLED), entry(1, SAMPLED)], chunks=[(0, 4), (1, 8)], sampled=[1])
    # The row's next request is another.
    steps.observe(2, freed=[0], new=[entry(0, SAMPLED)], chunks=[(0, 8)], sampled=[0, 1])
    assert len(steps.named("prefill")) == 3
    assert not steps.named("decode")
    steps.observer.reset()
    assert [span.attributes["batchyard.tokens"] for span in steps.named("decode")] == [2, 1]
