"""What the gateway counts for Prometheus, as users see it. Units are seconds and tokens.

A tenant is the name of an API key. The first hundred have a label of their own, the others share one.
"""

import os
from collections.abc import Iterable, Sequence

from prometheus_client import CONTENT_TYPE_LATEST, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from batchyard.metrics import buckets
from batchyard.metrics.aliases import Alias, Chosen, WithAliases
from batchyard.metrics.bounded_names import BoundedNames
from batchyard.metrics.endpoint import new_registry
from batchyard.metrics.vitals import Vitals

CONTENT_TYPE = CONTENT_TYPE_LATEST

_OURS = "batchyard_gateway_"
_VLLM = "vllm:"

ALIASES = (
    Alias("vllm:time_to_first_token_seconds", f"{_OURS}time_to_first_token_seconds"),
    Alias("vllm:inter_token_latency_seconds", f"{_OURS}inter_token_latency_seconds"),
    # Older dashboards call the same by this name.
    Alias("vllm:time_per_output_token_seconds", f"{_OURS}inter_token_latency_seconds"),
    Alias("vllm:request_time_per_output_token_seconds", f"{_OURS}time_per_output_token_seconds"),
    Alias("vllm:e2e_request_latency_seconds", f"{_OURS}time_to_last_token_seconds"),
    Alias("vllm:prompt_tokens", f"{_OURS}prompt_tokens"),
    Alias("vllm:generation_tokens", f"{_OURS}completion_tokens"),
    Alias("vllm:request_success", f"{_OURS}answers", keep={"reason": "finished_reason"}),
    Alias("vllm:request_prompt_tokens", f"{_OURS}request_prompt_tokens"),
    Alias("vllm:request_generation_tokens", f"{_OURS}answer_tokens"),
    Alias("vllm:request_params_n", f"{_OURS}request_answers"),
    Alias("vllm:request_params_max_tokens", f"{_OURS}request_max_tokens"),
)


class Metrics:
    """The metrics of one gateway process, in a registry of their own.

    Gateways that share a port answer for each other: where `PROMETHEUS_MULTIPROC_DIR` names a folder, each
    keeps its counts there and `exposition` sums them all. The library reads that variable once, on import.
    """

    def __init__(self, model_name: str = "") -> None:
        """`model_name` is the label of the metrics that have vLLM's names."""
        self._model_name = model_name
        self._multiprocess = "PROMETHEUS_MULTIPROC_DIR" in os.environ
        self.registry = registry = new_registry()
        self.tenants = BoundedNames()
        self.vitals = Vitals(registry)
        self.requests = Counter(
            f"{_OURS}requests",
            "API requests answered; status 499: the client went away first.",
            ["route", "status", "tenant"],
            registry=registry,
        )
        self.in_flight = Gauge(
            f"{_OURS}requests_in_flight",
            "API requests being answered now.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.rate_limited = Counter(
            f"{_OURS}rate_limited",
            "API requests refused because their key had used up a limit: requests, tokens or running.",
            ["tenant", "limit"],
            registry=registry,
        )
        self.duration = Histogram(
            f"{_OURS}request_duration_seconds",
            "From a request's arrival to the end of its answer.",
            ["route"],
            buckets=buckets.DURATION_S,
            registry=registry,
        )
        self._count_answers()
        self._time_answers()

    def _count_answers(self) -> None:
        registry = self.registry
        self.prompt_tokens = Counter(
            f"{_OURS}prompt_tokens", "Tokens read in prompts.", ["tenant"], registry=registry
        )
        self.completion_tokens = Counter(
            f"{_OURS}completion_tokens",
            "Tokens written in answers, counted when the request is over.",
            ["tenant"],
            registry=registry,
        )
        self.answers = Counter(
            f"{_OURS}answers", "Answers that came to an end, by finish reason.", ["reason"], registry=registry
        )
        self.request_prompt_tokens = self._histogram(
            "request_prompt_tokens", "Tokens in the prompts of one request.", buckets.TOKENS
        )
        self.answer_tokens = self._histogram("answer_tokens", "Tokens in one answer.", buckets.TOKENS)
        self.request_answers = self._histogram(
            "request_answers", "Answers asked for to each prompt of a request.", buckets.ANSWERS
        )
        self.request_max_tokens = self._histogram(
            "request_max_tokens", "Tokens that an answer was allowed.", buckets.TOKENS
        )

    def _time_answers(self) -> None:
        self.time_to_first_token = self._histogram(
            "time_to_first_token_seconds",
            "From a request's arrival to the first token of its first answer.",
            buckets.TTFT_S,
        )
        self.inter_token_latency = self._histogram(
            "inter_token_latency_seconds",
            "Between two pieces of one answer, per token of the second (ITL).",
            buckets.PER_TOKEN_S,
        )
        self.time_per_output_token = self._histogram(
            "time_per_output_token_seconds",
            "Of one answer: from its first token to its last, per token after the first (TPOT).",
            buckets.PER_TOKEN_S,
        )
        self.time_to_last_token = self._histogram(
            "time_to_last_token_seconds",
            "From a request's arrival to the last token of all its answers.",
            buckets.DURATION_S,
        )

    def _histogram(self, name: str, text: str, bounds: Sequence[float]) -> Histogram:
        return Histogram(_OURS + name, text, buckets=bounds, registry=self.registry)

    def exposition(self, names: Iterable[str] = ()) -> bytes:
        """The metrics that are named, or all, in Prometheus's text format; with those of other processes."""
        names = list(names)
        everything: Collector = self.registry
        if self._multiprocess:
            everything = MultiProcessCollector(None)  # type: ignore[no-untyped-call]
        elif names and not any(name.startswith(_VLLM) for name in names):
            everything = self.registry.restricted_registry(names)  # nothing else is even collected
        return generate_latest(Chosen(WithAliases(everything, ALIASES, lambda: self._model_name), names))
