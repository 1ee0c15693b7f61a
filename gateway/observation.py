"""What is learned of one API request on its way, told at the end: a span, metrics and one line of the log."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import structlog
from opentelemetry.trace import Span

from batchyard.spans import Value, parse_traceparent
from gateway.answer_times import AnswerTimes
from gateway.console.journal import Journal, RequestRecord
from gateway.console.waterfall import Waterfall
from gateway.metrics import Metrics
from gateway.request_trace import Traces, current_of
from gateway.schema.common import PromptTokensDetails, Usage
from gateway.timing import combined, told
from gateway.types import Piece, SamplingParams
from protos.scheduling_pb2 import Timing

log = structlog.get_logger()

CLIENT_GONE = 499  # nginx's status for a client that closed the connection before the answer


class Observation:
    """One API request, from its arrival to the end of its answer. Never holds what it says."""

    def __init__(
        self,
        request_id: str,
        name: str,
        traceparent: str,
        traces: Traces,
        metrics: Metrics,
        journal: Journal,
    ) -> None:
        """`name` is the server span's; `traceparent` the client's W3C trace context, empty without one."""
        self.request_id = request_id
        self._error: str | None = None
        self._our_fault = False
        self._metrics = metrics
        self._journal = journal
        self.started = time.perf_counter()  # seconds
        self._arrived = time.time()
        self._waterfall = Waterfall(self.started)
        self._model = ""
        self.answer_headers: dict[str, str] = {}  # that the answer gets, whatever it is
        self._tenant = ""
        self._trace = traces.begin(name, traceparent)
        self._traceparent = traceparent if parse_traceparent(traceparent) else ""
        self._prompt_tokens = 0
        self._completion_tokens = 0
        self._cached_tokens = 0
        self._answers_per_prompt = 1
        self._ttft: float | None = None  # seconds
        self._answers: dict[int, AnswerTimes] = {}  # those that have begun, by index
        self._finish_reasons: dict[int, str] = {}
        self._timings: dict[int, Timing] = {}
        metrics.in_flight.inc()

    @property
    def span(self) -> Span:
        """Its server span, which log lines refer to."""
        return current_of(self._trace)

    def traceparent_for(self, index: int) -> str:
        """The trace context for those who work on the answer with this index: without traces the client's."""
        return self._trace.traceparent_for(index) if self._trace else self._traceparent

    def tokenizing(self) -> AbstractContextManager[dict[str, Value]]:
        """The span of turning text into tokens."""
        return self._timed("tokenize")

    def limiting(self) -> AbstractContextManager[dict[str, Value]]:
        """The span of asking whether its key's limits let it in; it gets the attributes put in there."""
        return self._timed("limits")

    @contextmanager
    def _timed(self, name: str) -> Iterator[dict[str, Value]]:
        nothing: AbstractContextManager[dict[str, Value]] = nullcontext({})
        span = self._trace.child(name) if self._trace else nothing
        with self._waterfall.segment(name), span as attributes:
            yield attributes

    def generating(self) -> None:
        """All that is left is to generate its answers."""
        if self._trace:
            self._trace.generating()

    def reads(self, turns: Sequence[Mapping[str, str]]) -> None:
        """What the prompt says, by role; only for a trace that is to have it."""
        if self._trace:
            self._trace.reads(turns)

    def of_tenant(self, name: str) -> None:
        """Whose request it is: the name of its API key."""
        self._tenant = name

    def asked(
        self,
        model: str,
        operation: str,
        prompt_tokens: int,
        answers_per_prompt: int,
        params: SamplingParams,
    ) -> None:
        """The request has been understood. `operation` is a GenAI convention's: chat or text_completion."""
        self._model = model
        self._waterfall.asked()
        self._prompt_tokens = prompt_tokens
        self._answers_per_prompt = answers_per_prompt
        if self._trace:
            self._trace.asked(model, operation, params, answers_per_prompt)

    def allowed(self, answers_per_prompt: int, max_tokens: Iterable[int]) -> None:
        """How many answers were asked for to each prompt, and the tokens that those to each may have."""
        self._metrics.request_answers.observe(answers_per_prompt)
        for limit in max_tokens:
            self._metrics.request_max_tokens.observe(limit)

    def piece(self, index: int, piece: Piece) -> None:
        """A piece of the answer with this index has come."""
        if self._trace:
            self._trace.piece(index, piece)
        if piece.token_ids:
            now = time.perf_counter()
            if self._ttft is None:
                self._ttft = now - self.started
                self._journal.first_token(self._tenant, self._ttft, now)
            if answer := self._answers.get(index):
                gap = answer.piece(now, len(piece.token_ids))
                self._metrics.inter_token_latency.observe(gap)
                self._journal.next_token(self._tenant, gap, now)
            else:
                self._answers[index] = AnswerTimes(now, len(piece.token_ids))
            self._completion_tokens += len(piece.token_ids)
        if piece.finish_reason:
            self._finish_reasons[index] = piece.finish_reason
        if piece.timing:
            self._timings[index] = piece.timing
        if index % self._answers_per_prompt == 0:  # the others find what the first one has left
            self._cached_tokens += piece.cached_tokens

    def failed(self, error: str, *, our_fault: bool) -> None:
        """The answer is an error, or ends in one. `error` is a machine's name of it."""
        self._error = error
        self._our_fault = our_fault

    @property
    def usage(self) -> Usage:
        """Tokens so far, as the API tells them."""
        return Usage(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            total_tokens=self._prompt_tokens + self._completion_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=self._cached_tokens),
        )

    @property
    def timing(self) -> Timing | None:
        """Where the time went at the scheduler, of all answers: see `combined`. None before any has begun.

        Of an answer that the gateway itself ended, at a stop string or for a client that has gone, it is what
        was known with the first token.
        """
        return combined(list(self._timings.values())) if self._timings else None

    def end(self, route: str, status: int | str) -> None:
        """The answer has ended. `route` is a template, never a client's own words; called exactly once."""
        seconds = time.perf_counter() - self.started
        metrics = self._metrics
        tenant = metrics.tenants.label(self._tenant)
        metrics.in_flight.dec()
        metrics.requests.labels(route, str(status), tenant).inc()
        metrics.duration.labels(route).observe(seconds)
        if self._answers or self._finish_reasons:  # it was not refused
            metrics.prompt_tokens.labels(tenant).inc(self._prompt_tokens)
            metrics.request_prompt_tokens.observe(self._prompt_tokens)
        metrics.completion_tokens.labels(tenant).inc(self._completion_tokens)
        for reason in self._finish_reasons.values():
            metrics.answers.labels(reason).inc()
        if self._ttft is not None:
            self._count_times(self._ttft)
        timing = self.timing
        account = told(timing)
        self._end_span(route, status, account)
        if self._model or (self._error not in (None, "invalid_api_key") and route != "unknown"):
            self._journal.answered(self._record(route, status, seconds, timing))
        log.info(
            "request",
            route=route,
            status=status,
            error=self._error,
            tenant=self._tenant or None,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            cached_tokens=self._cached_tokens,
            ttft_ms=None if self._ttft is None else round(self._ttft * 1e3, 2),
            e2e_ms=round(seconds * 1e3, 2),
            **account,
        )

    @property
    def _last_token(self) -> float:
        """When it came, of all answers; there is one."""
        return max(answer.last for answer in self._answers.values())

    def _count_times(self, ttft: float) -> None:
        metrics = self._metrics
        metrics.time_to_first_token.observe(ttft)
        metrics.time_to_last_token.observe(self._last_token - self.started)
        for answer in self._answers.values():
            metrics.answer_tokens.observe(answer.tokens)
            if (seconds := answer.per_token) is not None:
                metrics.time_per_output_token.observe(seconds)

    def _record(self, route: str, status: int | str, seconds: float, timing: Timing | None) -> RequestRecord:
        tokens = None if self._ttft is None else (self.started + self._ttft, self._last_token)
        return RequestRecord(
            id=self.request_id,
            tenant=self._tenant,
            model=self._model,
            route=route,
            status=status,
            error=self._error,
            arrived=round(1e3 * self._arrived, 3),
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            cached_tokens=self._cached_tokens,
            ttft=None if self._ttft is None else round(1e3 * self._ttft, 2),
            duration=round(1e3 * seconds, 2),
            segments=self._waterfall.segments(tokens, self.started + seconds, timing),
            timing=told(timing),
            trace_id=self._trace.kept_id if self._trace else "",
        )

    def _end_span(self, route: str, status: int | str, account: Mapping[str, Value]) -> None:
        trace = self._trace
        if trace is None:
            return
        over_http = isinstance(status, int)
        told_of: dict[str, Value] = {
            "batchyard.request_id": self.request_id,
            "http.route" if over_http else "rpc.method": route,
            "http.response.status_code" if over_http else "rpc.response.status_code": status,
            "gen_ai.usage.input_tokens": self._prompt_tokens,
            "gen_ai.usage.output_tokens": self._completion_tokens,
            "gen_ai.usage.cache_read.input_tokens": self._cached_tokens,
            "gen_ai.response.finish_reasons": [
                self._finish_reasons[index] for index in sorted(self._finish_reasons)
            ],
        }
        if self._tenant:
            told_of["batchyard.tenant"] = self._tenant
        if self._ttft is not None:
            told_of["gen_ai.server.time_to_first_token"] = self._ttft
        if self._error:
            told_of["error.type"] = self._error
        trace.attributes |= told_of
        trace.attributes |= {f"batchyard.{name}": value for name, value in account.items()}
        trace.end(failed=self._our_fault)

    def named(self, method: str, route: str | None) -> None:
        """Its server span is that of an HTTP request to `route`, a template, where it is one of ours."""
        if self._trace:
            self._trace.name = f"{method} {route}" if route else method
            self._trace.attributes["http.request.method"] = method
