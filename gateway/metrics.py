"""What the gateway counts for Prometheus. Units are seconds and tokens; a tenant is the name of an API key.

Buckets are those that the OpenTelemetry GenAI conventions advise:
https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/
"""

import os

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

CONTENT_TYPE = CONTENT_TYPE_LATEST

_TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
_PER_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
_DURATION = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)


class Metrics:
    """The metrics of one gateway process, in a registry of their own.

    Gateways that share a port answer for each other: where `PROMETHEUS_MULTIPROC_DIR` names a folder, each
    keeps its counts there and `exposition` sums them all. The library reads that variable once, on import.
    """

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._multiprocess = "PROMETHEUS_MULTIPROC_DIR" in os.environ
        self.requests = Counter(
            "batchyard_gateway_requests",
            "API requests answered; status 499: the client went away first.",
            ["route", "status", "tenant"],
            registry=registry,
        )
        self.in_flight = Gauge(
            "batchyard_gateway_requests_in_flight",
            "API requests being answered now.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.prompt_tokens = Counter(
            "batchyard_gateway_prompt_tokens", "Tokens read in prompts.", ["tenant"], registry=registry
        )
        self.completion_tokens = Counter(
            "batchyard_gateway_completion_tokens", "Tokens written in answers.", ["tenant"], registry=registry
        )
        self.rate_limited = Counter(
            "batchyard_gateway_rate_limited",
            "API requests refused because their key had used up a limit: requests, tokens or running.",
            ["tenant", "limit"],
            registry=registry,
        )
        self.time_to_first_token = Histogram(
            "batchyard_gateway_time_to_first_token_seconds",
            "From a request's arrival to the first token of its first answer.",
            buckets=_TTFT,
            registry=registry,
        )
        self.inter_token_latency = Histogram(
            "batchyard_gateway_inter_token_latency_seconds",
            "Between two pieces of one answer, per token of the second.",
            buckets=_PER_TOKEN,
            registry=registry,
        )
        self.duration = Histogram(
            "batchyard_gateway_request_duration_seconds",
            "From a request's arrival to the end of its answer.",
            ["route"],
            buckets=_DURATION,
            registry=registry,
        )

    def exposition(self) -> bytes:
        """All counts in Prometheus's text format, those of the other processes included."""
        if not self._multiprocess:
            return generate_latest(self._registry)
        together = CollectorRegistry()
        MultiProcessCollector(together)  # type: ignore[no-untyped-call]  # registers itself
        return generate_latest(together)
