"""Trials of settings on a terminal."""

from collections.abc import Iterator, Sequence

from batchyard.loadtest.search import Trial
from batchyard.loadtest.statistics import Objectives
from batchyard.loadtest.table import grid as columns


def describe(trial: Trial, objectives: Objectives) -> str:
    """A trial in a line."""
    if trial.error:
        return f"{' '.join(trial.setting.flags)}: {trial.error}"
    good = f", {trial.good:.1%} within {objectives}" if trial.good is not None else ""
    return (
        f"{' '.join(trial.setting.flags)}: {trial.req_per_s:,.2f} requests/s, "
        f"{trial.output_tok_per_s:,.1f} tokens/s{good}"
    )


def show(trials: Sequence[Trial], objectives: Objectives) -> Iterator[str]:
    """The table, best last, and what to do with it."""
    head = ["--max-num-batched-tokens", "--max-num-seqs", "req/s", "out tok/s", "TTFT p99", "ITL p99"]
    head += ["good"] if objectives else []
    rows = [[*head, "RSS GiB", "cores", "worker busy", "GPU GiB", "GPU busy", ""]]
    rows += [_row(trial, bool(objectives)) for trial in sorted(trials, key=_rank)]
    yield from columns(rows)
    best = max(trials, key=_rank)
    if best.error or not best.keeps:
        wanted = f" within {objectives}" if objectives else ""
        yield f"No setting served this load{wanted}."
    else:
        within = f" within {objectives}" if objectives else ""
        yield f"Best{within}: {' '.join(best.setting.flags)}"


def _rank(trial: Trial) -> tuple[bool, float, float]:
    fit = trial.error is None and trial.keeps
    return fit, 0.0 if fit else trial.good or 0.0, trial.output_tok_per_s


def _row(trial: Trial, with_good: bool) -> list[str]:
    usage = trial.usage
    good = [_number(None if trial.good is None else 100 * trial.good, "{:.1f}%")] if with_good else []
    lost = f"{trial.lost} lost" if trial.lost else ""
    return [
        str(trial.setting.max_num_batched_tokens),
        str(trial.setting.max_num_seqs),
        f"{trial.req_per_s:,.2f}",
        f"{trial.output_tok_per_s:,.1f}",
        _number(trial.ttft_p99, "{:,.1f}"),
        _number(trial.itl_p99, "{:,.1f}"),
        *good,
        _number(usage.rss_gib, "{:.2f}"),
        _number(usage.cpu_cores, "{:.2f}"),
        _number(usage.worker_busy, "{:.0%}"),
        _number(usage.gpu_gib, "{:.1f}"),
        _number(usage.gpu_busy, "{:.0%}"),
        "did not start" if trial.error else lost,
    ]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
