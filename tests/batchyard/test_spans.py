"""Trace contexts, and which spans are exported when."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard.spans import (
    KEPT_TRACES,
    OFF,
    Span,
    SpanRecorder,
    TraceContext,
    new_trace,
    pack_trace_ids,
    parse_traceparent,
    unpack_trace_ids,
)


class TestTraceparent:
    @given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.booleans())
    def test_round_trip(self, trace_id, span_id, sampled):
        context = TraceContext(trace_id, span_id, sampled)
        assert parse_traceparent(context.traceparent) == context

    def test_examples_of_the_specification(self):
        text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        context = parse_traceparent(text)
        assert context == (0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331, True)
        assert context.traceparent == text
        # A later version may have other flags, and more fields.
        assert parse_traceparent(f"cc-{text[3:-2]}09-what-the-future-will-be-like") == context

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "nonsense",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ],
    )
    def test_malformed_is_none(self, text):
        assert parse_traceparent(text) is None

    @given(st.text())
    def test_never_an_error(self, text):
        parse_traceparent(text)

    def test_a_child_is_another_span_of_the_trace(self):
        parent = new_trace(sampled=True)
        child = parent.child()
        assert (child.trace_id, child.sampled) == (parent.trace_id, True)
        assert child.span_id != parent.span_id

    @given(st.lists(st.integers(0, 2**128 - 1)))
    def test_trace_ids_travel(self, trace_ids):
        assert unpack_trace_ids(pack_trace_ids(trace_ids)) == trace_ids


def span(context, name="span"):
    return Span(name, context, 0, 1, 2, {})


class TestRecorder:
    def test_a_share_of_new_traces_is_sampled(self):
        recorder = SpanRecorder(lambda span: None, sample=0.25)
        begun = [recorder.begin("") for _ in range(2000)]
        assert all(parent == 0 for _, parent in begun)
        assert 400 < sum(context.sampled for context, _ in begun) < 600
        for sample, sampled in ((0.0, False), (1.0, True)):
            context, _ = SpanRecorder(lambda span: None, sample).begin("")
            assert context.sampled is sampled

    @pytest.mark.parametrize("flags", ["00", "01"])
    def test_the_client_decides_for_its_own(self, flags):
        recorder = SpanRecorder(lambda span: None, sample=1 - int(flags))
        context, parent = recorder.begin(f"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flags}")
        assert parent == 0xB7AD6B7169203331
        assert context.trace_id == 0x0AF7651916CD43DD8448EB211C80319C
        assert context.sampled == (flags == "01")

    def test_what_is_sampled_is_exported_at_once(self):
        exported = []
        SpanRecorder(exported.append).add(span(new_trace(sampled=True)))
        assert len(exported) == 1

    def test_what_is_not_waits_to_be_kept(self):
        exported = []
        recorder = SpanRecorder(exported.append)
        mine, other = new_trace(sampled=False), new_trace(sampled=False)
        for context, name in ((mine, "a"), (other, "x"), (mine.child(), "b")):
            recorder.add(span(context, name))
        assert exported == []
        recorder.keep(mine.trace_id)
        recorder.add(span(mine, "c"))
        recorder.keep(mine.trace_id)
        assert [each.name for each in exported] == ["a", "b", "c"]

    def test_the_oldest_are_forgotten(self):
        exported = []
        recorder = SpanRecorder(exported.append, ring=4)
        contexts = [new_trace(sampled=False) for _ in range(4)]
        for name in "ab":
            for context in contexts:
                recorder.add(span(context, name))
        for context in contexts:
            recorder.keep(context.trace_id)
        assert [each.name for each in exported] == ["b"] * 4

    def test_memory_is_bounded(self):
        recorder = SpanRecorder(lambda span: None, ring=100)
        for n in range(3 * KEPT_TRACES):
            context = new_trace(sampled=False)
            recorder.add(span(context))
            if n % 2:
                recorder.keep(context.trace_id)
        assert len(recorder._order) == 100
        assert len(recorder._waiting) <= 100
        assert len(recorder._kept) <= KEPT_TRACES

    def test_without_anybody_to_send_to_nothing_is_recorded(self):
        assert not OFF.enabled
        OFF.add(span(new_trace(sampled=False)))
        OFF.add(span(new_trace(sampled=True)))
        assert not OFF._waiting
