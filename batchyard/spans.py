"""Spans of one process: made after the fact, as plain tuples, and kept or let go by who knows how it ended.

Whether a request's trace is exported is decided twice. At its head, a share of all is (`sampled`). The others
are recorded as well, and wait here in a ring of bounded size: when the gateway finds that a request failed or
was slow, it has all processes `keep` its trace. What waits costs a tuple; nothing is made of it.
"""

import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

Value = str | bool | int | float | Sequence[str]
Attributes = Mapping[str, Value]

RING_SPANS = 16_384  # that wait, of all traces: about a kilobyte each
KEPT_TRACES = 4_096  # that are remembered, for what still comes of them

_HEX = frozenset("0123456789abcdef")
_SAMPLED = 1


class TraceContext(NamedTuple):
    """A span as its children know it: W3C trace context. Ids are not 0, of 128 and 64 bits."""

    trace_id: int
    span_id: int
    sampled: bool  # to be exported, whatever comes

    @property
    def traceparent(self) -> str:
        """As https://www.w3.org/TR/trace-context/ writes it."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{int(self.sampled):02x}"

    def child(self) -> "TraceContext":
        """A new span in the same trace."""
        return TraceContext(self.trace_id, new_span_id(), self.sampled)


class Event(NamedTuple):
    """Something that happened in a span, at a time (Unix, ns)."""

    name: str
    at_ns: int
    attributes: Attributes


class Span(NamedTuple):
    """A span that is over. `parent_id` is 0 for a root; `failed` by our own fault; times are Unix, ns."""

    name: str
    context: TraceContext
    parent_id: int
    start_ns: int
    end_ns: int
    attributes: Attributes
    events: Sequence[Event] = ()
    links: Sequence[TraceContext] = ()
    is_server: bool = False
    failed: bool = False


def new_trace(*, sampled: bool) -> TraceContext:
    """A root span of a trace of its own."""
    return TraceContext(random.getrandbits(128) or 1, new_span_id(), sampled)


def new_span_id() -> int:
    """Which nobody else has."""
    return random.getrandbits(64) or 1


def parse_traceparent(text: str) -> TraceContext | None:
    """The span in a W3C `traceparent`; None where it is empty or malformed (never an error)."""
    parts = text.split("-")
    if len(parts) < 4 or (parts[0] == "00" and len(parts) != 4):
        return None
    version, trace, span, flags = parts[:4]
    lengths = len(version), len(trace), len(span), len(flags)
    if lengths != (2, 32, 16, 2) or version == "ff" or not _HEX.issuperset(version + trace + span + flags):
        return None
    trace_id, span_id = int(trace, 16), int(span, 16)
    if not (trace_id and span_id):
        return None
    return TraceContext(trace_id, span_id, bool(int(flags, 16) & _SAMPLED))


class SpanRecorder:
    """Takes spans that are over. For one thread; to export must be quick and never wait.

    The default is one that records nothing: `enabled` says so, for those who would make spans in vain.
    """

    def __init__(
        self, export: Callable[[Span], None] | None = None, sample: float = 1.0, ring: int = RING_SPANS
    ) -> None:
        """`sample` is the share of new traces that are exported whole, 0 to 1."""
        self.enabled = export is not None
        self._export = export or (lambda span: None)
        self._bound = round(sample * 2**64)
        self._room = ring
        self._waiting: dict[int, list[Span]] = {}  # by trace
        self._order: deque[int] = deque()  # traces of those that wait, one for each span, the oldest first
        self._kept: OrderedDict[int, None] = OrderedDict()

    def begin(self, traceparent: str) -> tuple[TraceContext, int]:
        """A server span below `traceparent`, or in a new trace that may be sampled; and its parent's id.

        The decision follows the trace's id as in OpenTelemetry's ratio sampler: all who have the id agree.
        """
        if parent := parse_traceparent(traceparent):
            return parent.child(), parent.span_id
        root = new_trace(sampled=False)
        return root._replace(sampled=root.trace_id & (2**64 - 1) < self._bound), 0

    def add(self, span: Span) -> None:
        """Exports `span`, or lets it wait for `keep`."""
        context = span.context
        if context.sampled or context.trace_id in self._kept:
            self._export(span)
        elif self.enabled:
            if len(self._order) >= self._room:
                self._forget_oldest()
            self._waiting.setdefault(context.trace_id, []).append(span)
            self._order.append(context.trace_id)

    def keep(self, trace_id: int) -> None:
        """The trace is to be exported after all: what of it is here, and what comes."""
        self._kept[trace_id] = None
        if len(self._kept) > KEPT_TRACES:
            self._kept.popitem(last=False)
        for span in self._waiting.pop(trace_id, ()):
            self._export(span)

    def _forget_oldest(self) -> None:
        trace_id = self._order.popleft()
        # None where the trace has been kept meanwhile, and its spans have left.
        if waiting := self._waiting.get(trace_id):
            del waiting[0]
            if not waiting:
                del self._waiting[trace_id]


OFF = SpanRecorder()
"""Where there is nobody to send spans to."""


def pack_trace_ids(trace_ids: Iterable[int]) -> list[bytes]:
    """16 bytes each, as they travel."""
    return [trace_id.to_bytes(16, "big") for trace_id in trace_ids]


def unpack_trace_ids(packed: Iterable[bytes]) -> list[int]:
    """The opposite."""
    return [int.from_bytes(each, "big") for each in packed]
