"""Bounds of histograms. Each list holds those that the OpenTelemetry GenAI conventions advise, and vLLM's.

https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/, vllm/v1/metrics/loggers.py
"""

# fmt: off
TTFT_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160,
    640, 2560,
)
"""Seconds to a first token."""

PER_TOKEN_S = (
    0.001, 0.0025, 0.005,  # ours: a small model's step is shorter than theirs
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80,
)
"""Seconds a token, after the first."""

DURATION_S = (
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84, 655.36,
    2621.44,
)
"""Seconds of a request."""
# fmt: on

PHASE_S = (0.001, 0.0025, 0.005, *DURATION_S)
"""Seconds of a part of a request."""

TOKENS = tuple(mantissa * 10**exponent for exponent in range(6) for mantissa in (1, 2, 5))
"""Tokens of a prompt or an answer."""

ROWS = tuple(2**exponent for exponent in range(11))
"""Rows of a step."""

STEP_TOKENS = (1, *(2**exponent for exponent in range(3, 15)))
"""Tokens of a step."""

STEP_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
"""Seconds of a step."""

MOVE_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
"""Seconds of a move between the tiers of a cache."""

LAG_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
"""Seconds by which an event loop is late."""

ANSWERS = (1, 2, 5, 10, 20)
"""Answers to one prompt."""
