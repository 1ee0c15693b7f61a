"""The gateway's part of a request's trace, and the decision whether a trace is kept.

POST /v1/chat/completions   SERVER, a child of the client's span where there is one
├── tokenize
├── limits                  asking whether the key's limits let it in
└── generate                one for each answer: the scheduler's spans are below
    └── scheduler.away      a time in which it had no scheduler
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from opentelemetry.trace import INVALID_SPAN, NonRecordingSpan, SpanContext
from opentelemetry.trace import Span as ApiSpan

from batchyard.spans import OFF, Span, SpanRecorder, TraceContext, Value
from gateway.timing import told
from gateway.trace_content import MOST_CHARACTERS, input_messages, output_messages
from gateway.types import Piece, SamplingParams
from protos.scheduling_pb2 import Timing


def _nobody(trace_ids: Sequence[int]) -> None:
    """Where no scheduler is told."""


class Traces:
    """Begins the traces of requests. Those not sampled are kept when they turn out to fail, or slow."""

    def __init__(
        self,
        recorder: SpanRecorder = OFF,
        slow_s: float = float("inf"),
        tell: Callable[[Sequence[int]], None] = _nobody,
        *,
        content: bool = False,
    ) -> None:
        """A request is slow that leaves its client without news for `slow_s`, whether for the first token or
        the next. `tell` has the scheduler keep traces. `content`: whether prompts and answers are recorded.
        """
        self.recorder = recorder
        self.slow_s = slow_s
        self.content = content and recorder.enabled
        self._tell = tell

    def begin(self, name: str, traceparent: str) -> "RequestTrace | None":
        """The trace of a request that has come with the client's `traceparent`; None where nobody traces."""
        return RequestTrace(self, name, traceparent) if self.recorder.enabled else None

    def keep(self, trace_id: int) -> None:
        """All processes are to export what they have of a trace that was not sampled."""
        self.recorder.keep(trace_id)
        self._tell([trace_id])


class RequestTrace:
    """Of one API request. Times are Unix, ns."""

    def __init__(self, traces: Traces, name: str, traceparent: str) -> None:
        self.name = name  # of the server span
        self.attributes: dict[str, Value] = {}  # likewise
        self.context, self._parent_id = traces.recorder.begin(traceparent)
        self._traces = traces
        self._kept = self.context.sampled
        self._start_ns = time.time_ns()
        self._generating_ns: int | None = None
        self._slow_ns = traces.slow_s * 1e9
        self._answers: dict[int, _Answer] = {}

    @property
    def current(self) -> ApiSpan:
        """The server span, for those who want to know its ids."""
        return NonRecordingSpan(SpanContext(self.context.trace_id, self.context.span_id, is_remote=False))

    @property
    def kept_id(self) -> str:
        """The trace's id in hexadecimal, where it is exported; empty where it is not, so far."""
        return f"{self.context.trace_id:032x}" if self._kept else ""

    def traceparent_for(self, index: int) -> str:
        """The W3C trace context for those who work on the answer with this index."""
        answer = self._answers[index] = _Answer(self.context.child(), self._start_ns)
        return answer.context.traceparent

    def asked(self, model: str, operation: str, params: SamplingParams, answers_per_prompt: int) -> None:
        """The request has been understood. `operation` is a GenAI convention's: chat or text_completion."""
        self.attributes |= {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "batchyard",
            "gen_ai.request.model": model,
            "gen_ai.response.model": model,
            "gen_ai.request.temperature": params.temperature,
            "gen_ai.request.top_p": params.top_p,
            "gen_ai.request.top_k": params.top_k,
            "gen_ai.request.frequency_penalty": params.frequency_penalty,
            "gen_ai.request.presence_penalty": params.presence_penalty,
            "gen_ai.request.choice.count": answers_per_prompt,
        }
        if params.max_tokens is not None:
            self.attributes["gen_ai.request.max_tokens"] = params.max_tokens
        if params.seed is not None:
            self.attributes["gen_ai.request.seed"] = params.seed

    def reads(self, turns: Sequence[Mapping[str, str]]) -> None:
        """The roles and contents that were asked about. Recorded only where content is to be."""
        if self._traces.content:
            self.attributes["gen_ai.input.messages"] = input_messages(turns)

    @contextmanager
    def child(self, name: str) -> Iterator[dict[str, Value]]:
        """The span of what is done within; it gets the attributes that are put into the dictionary."""
        attributes: dict[str, Value] = {}
        start_ns = time.time_ns()
        try:
            yield attributes
        finally:
            self._add(name, self.context.child(), self.context, start_ns, time.time_ns(), attributes)

    def generating(self) -> None:
        """From now on all that is left is to generate."""
        self._generating_ns = time.time_ns()

    def piece(self, index: int, piece: Piece) -> None:
        """A piece of the answer with this index has come."""
        if answer := self._answers.get(index):
            if answer.add(piece, time.time_ns()) > self._slow_ns:
                self.keep()
            if self._traces.content:
                answer.text = (answer.text + piece.text)[: MOST_CHARACTERS + 1]
            for start_ns, end_ns in piece.away:
                self._add("scheduler.away", self.context.child(), answer.context, start_ns, end_ns, {})
            if piece.finish_reason:
                self._end_answer(index, answer)

    def keep(self) -> None:
        """It is to be exported, sampled or not: from now on, and what there is of it already."""
        if not self._kept:
            self._kept = True
            self._traces.keep(self.context.trace_id)

    def end(self, *, failed: bool) -> None:
        """The answer has ended, with an error of ours where it `failed`."""
        end_ns = time.time_ns()
        unfinished = [answer for answer in self._answers.values() if not answer.ended]
        heard_ns = [answer.heard_ns for answer in unfinished] if self._answers else [self._start_ns]
        if failed or any(end_ns - each > self._slow_ns for each in heard_ns):
            self.keep()
        for index, answer in self._answers.items():
            if not answer.ended:
                self._end_answer(index, answer)
        if self._traces.content and self._answers:
            said = [(answer.text, answer.finish_reason or "error") for answer in self._answers.values()]
            self.attributes["gen_ai.output.messages"] = output_messages(said)
        span = Span(
            self.name,
            self.context,
            self._parent_id,
            self._start_ns,
            end_ns,
            self.attributes,
            is_server=True,
            failed=failed,
        )
        self._traces.recorder.add(span)

    def _end_answer(self, index: int, answer: "_Answer") -> None:
        answer.ended = True
        if self._generating_ns is None:  # it was refused before
            return
        attributes: dict[str, Value] = {"batchyard.answer": index} | answer.attributes
        self._add("generate", answer.context, self.context, self._generating_ns, time.time_ns(), attributes)

    def _add(
        self,
        name: str,
        context: TraceContext,
        parent: TraceContext,
        start_ns: int,
        end_ns: int,
        attributes: dict[str, Value],
    ) -> None:
        self._traces.recorder.add(Span(name, context, parent.span_id, start_ns, end_ns, attributes))


class _Answer:
    """What is learned of one answer."""

    def __init__(self, context: TraceContext, asked_ns: int) -> None:
        self.context = context
        self.ended = False
        self.heard_ns = asked_ns  # when something came of it last
        self.finish_reason = ""
        self.text = ""  # where content is recorded
        self._tokens = 0
        self._timing: Timing | None = None

    def add(self, piece: Piece, now_ns: int) -> int:
        """How long there was nothing of it, in nanoseconds."""
        silence_ns, self.heard_ns = now_ns - self.heard_ns, now_ns
        self.finish_reason = piece.finish_reason or ""
        self._tokens += len(piece.token_ids)
        self._timing = piece.timing or self._timing
        return silence_ns

    @property
    def attributes(self) -> dict[str, Value]:
        reasons: Sequence[str] = [self.finish_reason] if self.finish_reason else []
        attributes: dict[str, Value] = {
            "gen_ai.usage.output_tokens": self._tokens,
            "gen_ai.response.finish_reasons": reasons,
        }
        return attributes | {f"batchyard.{name}": value for name, value in told(self._timing).items()}


def current_of(trace: RequestTrace | None) -> ApiSpan:
    """The server span of a request, traced or not."""
    return trace.current if trace else INVALID_SPAN
