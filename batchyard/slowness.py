"""Where a request was slow, told from the spans of its trace alone: docs/observability.md lists the spans.

Every place is one where time can go. What a span took is that of its place, but for prefill, whose time is
shared with the other prompts in its steps, and computed again after a loss, when the loss has cost it.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple


class Place(StrEnum):
    """Where time goes."""

    TOKENIZER = "tokenizer"
    RATE_LIMIT = "rate limit"
    NO_SCHEDULER = "no scheduler"
    QUEUE = "queue"
    OTHER_PROMPTS = "prefill behind other prompts"
    PREFILL = "prefill"
    PREEMPTION = "preemption"
    WORKER_LOSS = "worker loss"
    DRAIN = "drain"
    DECODE = "decode"
    ELSEWHERE = "elsewhere"  # in no span: the gateway, the client, the network


class Share(NamedTuple):
    """How long a request was at a place."""

    place: Place
    milliseconds: float


@dataclass(frozen=True, slots=True)
class SeenSpan:
    """A span as a collector has it: ids in hexadecimal, times in Unix nanoseconds.

    `events` are (name, time, attributes), in order.
    """

    name: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Any] = field(default_factory=dict)
    events: Sequence[tuple[str, int, Mapping[str, Any]]] = ()

    @property
    def ms(self) -> float:
        """How long it took."""
        return (self.end_ns - self.start_ns) / 1e6


_Spent = defaultdict[Place, float]  # milliseconds

_WHOLE = {
    "tokenize": Place.TOKENIZER,
    "limits": Place.RATE_LIMIT,
    "scheduler.away": Place.NO_SCHEDULER,
    "decode": Place.DECODE,
}
_WORK = {Place.PREFILL, Place.DECODE}  # which has to be done in any case; all else is a delay
_NOTABLE = 0.1  # of the time of a request
_WAITS = {
    "scheduler.queue": Place.QUEUE,
    "preempted": Place.PREEMPTION,
    "retry": Place.WORKER_LOSS,
    "migrate": Place.DRAIN,
}


def slowest(spans: Iterable[SeenSpan]) -> Share:
    """Where one request was slow: what delayed it most, or where that was little, what most of it was.

    Raises ValueError as `shares` does.
    """
    found = shares(spans)
    least = _NOTABLE * sum(share.milliseconds for share in found)
    delays = [share for share in found if share.place not in _WORK and share.milliseconds >= least]
    return (delays or found)[0]


def shares(spans: Iterable[SeenSpan]) -> list[Share]:
    """Where the time of one request went, the most first. Of several answers, the one that ended last counts.

    `spans` are those of its trace, in any order. Raises ValueError where its server span is not among them.
    """
    spans = list(spans)
    root = _root(spans)
    spent: _Spent = defaultdict(float)
    ours = _of_last_answer(spans)
    for span in ours:
        if place := _WHOLE.get(span.name):
            spent[place] += span.ms
        elif span.name in _WAITS:
            _add_wait(spent, span)
        elif span.name == "prefill":
            _add_prefill(spent, span, ours)
    spent[Place.ELSEWHERE] += max(0.0, root.ms - sum(spent.values()))
    found = [Share(place, round(ms, 3)) for place, ms in spent.items() if ms > 0]
    return sorted(found, key=lambda share: -share.milliseconds)


def _root(spans: Sequence[SeenSpan]) -> SeenSpan:
    """The server span: what `generate` or `tokenize` is below, and else what is below nothing."""
    ids = {span.span_id: span for span in spans}
    for span in spans:
        if span.name in ("generate", "tokenize", "limits") and (root := ids.get(span.parent_id)):
            return root
    for span in spans:
        if span.parent_id not in ids and span.name != "step":
            return span
    raise ValueError("there is no server span")


def _of_last_answer(spans: Sequence[SeenSpan]) -> list[SeenSpan]:
    answers = sorted((span for span in spans if span.name == "generate"), key=lambda span: span.end_ns)
    others = {span.span_id for span in answers[:-1]}
    while True:
        below = {span.span_id for span in spans if span.parent_id in others} - others
        if not below:
            return [span for span in spans if span.span_id not in others]
        others |= below


def _add_wait(spent: _Spent, span: SeenSpan) -> None:
    place = _WAITS[span.name]
    prompts = min(span.ms, span.attributes.get("batchyard.prompt_ms", 0.0)) if place is Place.QUEUE else 0.0
    spent[Place.OTHER_PROMPTS] += prompts
    spent[place] += span.ms - prompts


def _add_prefill(spent: _Spent, span: SeenSpan, spans: Sequence[SeenSpan]) -> None:
    """Its chunks, and the pauses before each: of its own, behind other prompts, or made up for a loss."""
    run = next((each for each in spans if each.span_id == span.parent_id), None)
    # What has ended before is by another process's clock, but not by much.
    lost = [each for each in spans if each.name in _WAITS and each.end_ns <= span.end_ns]
    last = max(lost, key=lambda each: each.end_ns, default=None)
    if last is not None and last.name != "scheduler.queue":
        since_ns = run.start_ns if run else span.start_ns
        spent[_WAITS[last.name]] += max(0, span.end_ns - since_ns) / 1e6
        return
    before_ns = min(run.start_ns, span.start_ns) if run else span.start_ns
    for _, at_ns, chunk in span.events:
        ms = min(chunk["batchyard.step_ms"], max(0, at_ns - before_ns) / 1e6)
        pause = max(0, at_ns - before_ns) / 1e6 - ms
        own, others = chunk["batchyard.tokens"], chunk["batchyard.other_tokens"]
        spent[Place.OTHER_PROMPTS] += ms * others / (own + others)
        spent[Place.PREFILL] += ms * own / (own + others)
        spent[Place.OTHER_PROMPTS if chunk["batchyard.tokens_before"] else Place.PREFILL] += pause
        before_ns = at_ns
