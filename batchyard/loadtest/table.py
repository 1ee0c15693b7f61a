"""A load test on a terminal."""

from collections.abc import Iterator, Sequence

from batchyard.loadtest.results import Result, Run
from batchyard.loadtest.statistics import Spread, Summary

_QUANTILES = ("mean", "p50", "p90", "p95", "p99", "max")


def show_run(run: Run) -> Iterator[str]:
    """Lines for one run."""
    summary = run.summary
    yield f"{run.point}: {_counts(summary)}, in {summary.seconds:.1f} s"
    if summary.ok:
        yield (
            f"  {summary.req_per_s:,.2f} requests/s   {summary.output_tok_per_s:,.1f} output tokens/s   "
            f"{summary.input_tok_per_s:,.1f} input tokens/s"
        )
        yield from _latencies(summary)
    if summary.good is not None:
        yield f"  goodput: {summary.good:.1%} within {run.objectives}, {summary.good_per_s:,.2f} requests/s"
    yield from (f"  note: {note}" for note in notes(run))


def _counts(summary: Summary) -> str:
    parts = [f"{summary.ok} of {summary.requests} requests answered"]
    bad = {name: getattr(summary, name) for name in ("refused", "failed", "cancelled")}
    parts += [f"{count} {name}" for name, count in bad.items() if count]
    return ", ".join(parts)


def _latencies(summary: Summary) -> Iterator[str]:
    yield f"  {'ms':<6}" + "".join(f"{name:>11}" for name in _QUANTILES)
    rows = {"TTFT": summary.ttft_ms, "ITL": summary.itl_ms, "TPOT": summary.tpot_ms, "E2E": summary.e2e_ms}
    for name, spread in (rows | {"queue": summary.queue_ms}).items():
        if spread:
            yield f"  {name:<6}" + "".join(f"{getattr(spread, q):>11,.2f}" for q in _QUANTILES)


def notes(run: Run) -> Iterator[str]:
    """What a reader of the figures should know."""
    summary = run.summary
    if run.stopped:
        yield "stopped before its end"
    if summary.refused or summary.retried:
        named = summary.retry_after_s
        says = f", Retry-After {named[0]:g} to {named[1]:g} s" if named else ", no Retry-After"
        again = f"; {summary.retried} refusals were followed by another try" if summary.retried else ""
        yield f"{summary.refused} requests refused for want of room{says}{again}"
    if summary.short:
        yield f"{summary.short} answers have fewer tokens than asked for: the server ignores ignore_eos?"
    if summary.uncounted:
        yield f"{summary.uncounted} answers came without usage: their events were counted as tokens"
    if summary.late_ms and summary.late_ms.p99 > 10:
        yield f"requests were sent {summary.late_ms.p99:.0f} ms after they were due, at p99"
    if doubt := run.health.doubt:
        yield doubt
    yield from (f"{count} times: {error}" for error, count in summary.errors.items())


def show_sweep(result: Result, knee: Run | None) -> Iterator[str]:
    """A table of several runs."""
    head = ["", "req/s", "out tok/s", "TTFT p50", "TTFT p99", "ITL p50", "ITL p99", "E2E p50", "E2E p99"]
    rows = [head + (["good"] if result.objectives else []) + ["failed", "refused"]]
    rows += [_sweep_row(run) for run in result.runs]
    yield from grid(rows)
    if knee:
        yield f"The knee is at {knee.point}: {_why_knee(knee)}."
    elif result.objectives:
        yield f"At no point 95% of the requests were within {result.objectives}."


def _sweep_row(run: Run) -> list[str]:
    summary = run.summary
    spreads = (summary.ttft_ms, summary.itl_ms, summary.e2e_ms)
    times = [_quantile(spread, name) for spread in spreads for name in ("p50", "p99")]
    good = [] if summary.good is None else [f"{summary.good:.1%}"]
    counts = [str(summary.failed), str(summary.refused)]
    return [
        str(run.point),
        f"{summary.req_per_s:,.2f}",
        f"{summary.output_tok_per_s:,.1f}",
        *times,
        *good,
        *counts,
    ]


def _why_knee(run: Run) -> str:
    if run.objectives:
        return f"the most requests/s within {run.objectives}"
    return "beyond it latency grows faster than throughput"


def _quantile(spread: Spread | None, name: str) -> str:
    return f"{getattr(spread, name):,.1f}" if spread else "-"


def grid(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows in columns, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *cells]).rstrip()
