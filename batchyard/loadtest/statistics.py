"""What many requests come to: percentiles, throughput, goodput.

TTFT is from sending a request (the first time, where it was refused and sent again) to the first token; ITL
between two events of one stream; TPOT the time from the first token to the last, by the tokens after the
first; E2E from sending to the last token. Throughput counts what was answered, over the time from the first
of them being sent to the last token. Percentiles are numpy's, linear between neighbours.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from batchyard.errors import ConfigError
from batchyard.loadtest.outcomes import Floats, Kind, Outcome

_ERRORS = 5  # different ones that are kept


@dataclass(frozen=True, slots=True)
class Spread:
    """Milliseconds."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


def spread(seconds: Floats | Sequence[float]) -> Spread | None:
    """Of durations in seconds; None where there are none."""
    if not len(seconds):
        return None
    values = 1000 * np.asarray(seconds)
    quantiles = np.percentile(values, [50, 90, 95, 99, 100])
    return Spread(*(round(float(value), 3) for value in (values.mean(), *quantiles)))


@dataclass(frozen=True, slots=True)
class Objectives:
    """Milliseconds that a request may take. Of ITL, the 99th percentile of the request's own gaps counts."""

    ttft: float | None = None
    itl: float | None = None
    tpot: float | None = None
    e2e: float | None = None

    def __bool__(self) -> bool:
        return any(getattr(self, part.name) is not None for part in fields(self))

    def kept(self, outcome: Outcome) -> bool:
        """Whether a request was answered within all of them."""
        if not outcome.ok:
            return False
        taken = {
            "ttft": outcome.ttft,
            "itl": float(np.percentile(outcome.gaps, 99)) if len(outcome.gaps) else 0.0,
            "tpot": outcome.tpot or 0.0,
            "e2e": outcome.e2e,
        }
        bounds = {name: getattr(self, name) for name in taken}
        return all(bound is None or 1000 * taken[name] <= bound for name, bound in bounds.items())

    def __str__(self) -> str:
        return " ".join(f"{name}:{value:g}" for name, value in asdict(self).items() if value is not None)


def parse_objectives(words: Iterable[str]) -> Objectives:
    """`ttft:500 itl:50`, milliseconds. Raises ConfigError."""
    bounds = {}
    for word in words:
        name, _, value = word.partition(":")
        try:
            bounds[name] = float(value)
        except ValueError:
            raise ConfigError(f"--goodput {word}: should be like ttft:500, in milliseconds") from None
        if name not in {part.name for part in fields(Objectives)}:
            raise ConfigError(f"--goodput {word}: there are ttft, itl, tpot and e2e")
    return Objectives(**bounds)


@dataclass(frozen=True, slots=True)
class Summary:
    """A run in figures. Rates are per second; `good` is the share of requests within the objectives."""

    requests: int
    ok: int
    refused: int
    failed: int
    cancelled: int
    short: int
    uncounted: int  # answers without usage: their events were counted as tokens
    retried: int  # refusals of requests that were sent again
    seconds: float
    req_per_s: float
    input_tok_per_s: float
    output_tok_per_s: float
    ttft_ms: Spread | None
    itl_ms: Spread | None
    tpot_ms: Spread | None
    e2e_ms: Spread | None
    queue_ms: Spread | None
    late_ms: Spread | None  # sent after they were due
    retry_after_s: tuple[float, float] | None  # lowest and highest that was named
    good: float | None
    good_per_s: float | None
    errors: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """As it is kept."""
        return asdict(self)


def summarize(outcomes: Sequence[Outcome], objectives: Objectives) -> Summary:
    """Of a whole run. Latencies and throughput are those of what was answered to the end."""
    kinds = Counter(outcome.kind for outcome in outcomes)
    good = [outcome for outcome in outcomes if outcome.ok]
    seconds = max(o.end for o in good) - min(o.sent for o in good) if good else 0.0
    rate = 1 / seconds if seconds else 0.0
    kept = sum(map(objectives.kept, good)) if objectives else None
    asked = len(outcomes) - kinds[Kind.CANCELLED]
    named = [outcome.retry_after for outcome in outcomes if outcome.retry_after is not None]
    errors = Counter(outcome.error for outcome in outcomes if outcome.error)
    return Summary(
        requests=len(outcomes),
        ok=len(good),
        refused=kinds[Kind.REFUSED],
        failed=kinds[Kind.FAILED],
        cancelled=kinds[Kind.CANCELLED],
        short=sum(outcome.short for outcome in good),
        uncounted=sum(not outcome.counted for outcome in good),
        retried=sum(outcome.refusals for outcome in outcomes),
        seconds=round(seconds, 4),
        req_per_s=round(len(good) * rate, 4),
        input_tok_per_s=round(sum(o.input_tokens for o in good) * rate, 2),
        output_tok_per_s=round(sum(o.output_tokens for o in good) * rate, 2),
        ttft_ms=spread([o.ttft for o in good]),
        itl_ms=spread(np.concatenate([o.gaps for o in good]) if good else []),
        tpot_ms=spread([o.tpot for o in good if o.tpot is not None]),
        e2e_ms=spread([o.e2e for o in good]),
        queue_ms=spread([o.queue for o in good if o.queue is not None]),
        late_ms=spread([max(0.0, o.sent - o.due) for o in outcomes]),
        retry_after_s=(min(named), max(named)) if named else None,
        good=None if kept is None or not asked else round(kept / asked, 4),
        good_per_s=None if kept is None else round(kept * rate, 4),
        errors=dict(errors.most_common(_ERRORS)),
    )
