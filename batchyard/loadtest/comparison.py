"""`batchyard bench compare A.json B.json`: ratios of two results, with bootstrap confidence intervals.

Latencies are drawn again by request, all gaps of a request together, for these are not independent;
throughput by slices of time. The intervals thus know how requests of one run differ, and nothing of how one
run of the same server differs from the next: where that matters, measure A B A B, and look at both.

B. Efron, R. Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 8 and 13.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from batchyard.errors import ConfigError
from batchyard.loadtest.options import Parser
from batchyard.loadtest.outcomes import Floats, Outcome
from batchyard.loadtest.results import Point, Run, load_result
from batchyard.loadtest.table import grid

_DRAWS = 400
_SLICES = 20
_FEW = 10  # requests: below that a percentile's interval says nothing


@dataclass(frozen=True, slots=True)
class Ratio:
    """B over A of one figure, with the bounds of its 95% interval."""

    name: str
    a: float
    b: float
    low: float
    high: float
    more_is_better: bool = False

    @property
    def ratio(self) -> float:
        """B over A."""
        return self.b / self.a

    @property
    def verdict(self) -> str:
        """`better` or `worse` where the interval leaves no doubt about the direction."""
        if self.low <= 1 <= self.high:
            return ""
        return "better" if (self.low > 1) == self.more_is_better else "worse"


@dataclass(frozen=True)
class Sample:
    """Values of requests, sorted: percentiles of resampled requests are read off their weights.

    `owner[i]` is the request that `values[i]` belongs to, of `requests`.
    """

    values: Floats
    owner: np.typing.NDArray[np.int64]
    requests: int

    def percentile(self, weights: np.typing.NDArray[np.int64], percent: float) -> float:
        """Of the values, each counted as often as its request was drawn: `weights`, `[requests]`."""
        total = np.cumsum(weights[self.owner])
        place = int(np.searchsorted(total, percent / 100 * total[-1]))
        return float(self.values[min(place, len(self.values) - 1)])


def sample(values: Sequence[Floats]) -> Sample:
    """Of each request's values."""
    joined = np.concatenate(values)
    owner = np.repeat(np.arange(len(values)), [len(own) for own in values])
    order = np.argsort(joined, kind="stable")
    return Sample(joined[order], owner[order], len(values))


def compare(a: Run, b: Run, seed: int = 0) -> list[Ratio]:
    """All figures of two runs that both have answers."""
    rng = np.random.default_rng(seed)
    ratios = [_throughput(a, b, rng)]
    for name, pick in _LATENCIES.items():
        samples = [sample(values) for run in (a, b) if (values := _picked(run, pick))]
        if len(samples) == 2:
            ratios += _percentiles(name, samples[0], samples[1], rng)
    return ratios


_LATENCIES: dict[str, Callable[[Outcome], Floats]] = {
    "TTFT": lambda outcome: np.array([outcome.ttft]),
    "ITL": lambda outcome: outcome.gaps,
    "TPOT": lambda outcome: np.array([] if outcome.tpot is None else [outcome.tpot]),
    "E2E": lambda outcome: np.array([outcome.e2e]),
}


def _picked(run: Run, pick: Callable[[Outcome], Floats]) -> list[Floats]:
    picked = [pick(outcome) for outcome in run.outcomes if outcome.ok]
    return [values for values in picked if len(values)]


def _percentiles(name: str, a: Sample, b: Sample, rng: np.random.Generator) -> Iterator[Ratio]:
    ones = [np.ones(side.requests, np.int64) for side in (a, b)]
    drawn = [
        [rng.multinomial(side.requests, np.full(side.requests, 1 / side.requests)) for _ in range(_DRAWS)]
        for side in (a, b)
    ]
    for percent in (50, 99):
        whole = [side.percentile(one, percent) for side, one in zip((a, b), ones, strict=True)]
        if min(whole) <= 0:
            continue
        again = [
            np.array([side.percentile(weights, percent) for weights in draws])
            for side, draws in zip((a, b), drawn, strict=True)
        ]
        low, high = np.percentile(again[1] / np.maximum(again[0], 1e-9), [2.5, 97.5])
        yield Ratio(f"{name} p{percent}, ms", 1000 * whole[0], 1000 * whole[1], float(low), float(high))


def _throughput(a: Run, b: Run, rng: np.random.Generator) -> Ratio:
    drawn = []
    for run in (a, b):
        slices = _slices(run)
        drawn.append(rng.choice(slices, (_DRAWS, len(slices))).mean(axis=1))
    low, high = np.percentile(drawn[1] / np.maximum(drawn[0], 1e-9), [2.5, 97.5])
    rates = (a.summary.output_tok_per_s, b.summary.output_tok_per_s)
    return Ratio("output tokens/s", *rates, float(low), float(high), more_is_better=True)


def _slices(run: Run) -> Floats:
    """Tokens a second in each slice of the run's time."""
    good = [outcome for outcome in run.outcomes if outcome.ok]
    stamps = np.concatenate([outcome.stamps for outcome in good])
    weights = np.concatenate([np.full(len(o.stamps), o.output_tokens / len(o.stamps)) for o in good])
    span = (min(outcome.sent for outcome in good), max(outcome.end for outcome in good))
    counts, _ = np.histogram(stamps, _SLICES, span, weights=weights)
    return counts / ((span[1] - span[0]) / _SLICES)


def pairs(a: Sequence[Run], b: Sequence[Run]) -> list[tuple[Point, Run, Run]]:
    """Runs of the same point; a result of one run is compared with one of one run, whatever their points."""
    answered = [[run for run in runs if run.summary.ok] for runs in (a, b)]
    if [len(runs) for runs in answered] == [1, 1]:
        return [(answered[0][0].point, answered[0][0], answered[1][0])]
    of_b = {run.point: run for run in answered[1]}
    return [(run.point, run, of_b[run.point]) for run in answered[0] if run.point in of_b]


def show(point: Point, a: Run, b: Run, names: tuple[str, str]) -> Iterator[str]:
    """Lines for one pair."""
    yield f"{point}: A {names[0]}, {a.summary.ok} answered; B {names[1]}, {b.summary.ok} answered"
    if a.point != b.point:
        yield f"  note: A was measured at {a.point}, B at {b.point}"
    for name, run in (("A", a), ("B", b)):
        summary = run.summary
        if lost := summary.failed + summary.refused + summary.short:
            yield f"  note: in {name} {lost} requests failed, were refused or are short: compare with care"
    if min(a.summary.ok, b.summary.ok) < _FEW:
        yield "  note: with so few requests the intervals say little"
    rows = [["", "A", "B", "B / A", "95% interval", ""]]
    for ratio in compare(a, b):
        interval = f"{ratio.low:.3f} to {ratio.high:.3f}"
        figures = [f"{ratio.a:,.2f}", f"{ratio.b:,.2f}", f"{ratio.ratio:.3f}"]
        rows.append([f"  {ratio.name}", *figures, interval, ratio.verdict])
    yield from grid(rows)


def main(argv: Sequence[str]) -> None:
    """`argv` is what follows `batchyard bench compare`. Raises ConfigError."""
    parser = Parser(
        prog="batchyard bench compare", description="Ratios of two saved results.", allow_abbrev=False
    )
    parser.add_argument("a", type=Path, metavar="A.json", help="of batchyard bench --save")
    parser.add_argument("b", type=Path, metavar="B.json", help="what is compared with it")
    given = parser.parse_args(list(argv))
    a, b = load_result(given.a), load_result(given.b)
    common = pairs(a.runs, b.runs)
    if not common:
        raise ConfigError(f"{given.a} and {given.b} have no point in common at which both got answers")
    if different := sorted(key for key in _SAME if a.workload.get(key) != b.workload.get(key)):
        flags = ", ".join(f"--{key.replace('_', '-')}" for key in different)
        print(f"note: not the same workload: they differ in {flags}\n")
    for point, run_a, run_b in common:
        print(*show(point, run_a, run_b, (a.name, b.name)), "", sep="\n")


_SAME = (
    *(
        "input",
        "output",
        "prefix",
        "prefixes",
        "prefix_share",
        "turns",
        "think",
        "system",
        "dataset",
        "trace",
    ),
    *(
        "scale_tokens",
        "max_input",
        "max_output",
        "endpoint",
        "prompts",
        "temperature",
        "body",
        "no_ignore_eos",
    ),
    *("seed", "requests", "burstiness"),
)
