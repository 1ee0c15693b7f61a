"""The service beside vLLM on one GPU: `python -m bench.serving` reruns the table of docs/benchmarks.md.

For each model it writes a folder without weights, starts `batchyard serve` with random ones, notes the time
to ready, runs the load tests one after another and ends the service. What was measured goes to
DIR/results.jsonl as it comes; the table shows the newest result of each row, so that parts can be run again:

    python -m bench.serving                                          what has a goal, in about 6 minutes
    python -m bench.serving --only llama-8b:decode-1 llama-8b:long   two rows
    python -m bench.serving --only qwen3-0.6b -- --gateways 2        a model; flags for `batchyard serve`
    python -m bench.serving --small -- --device cpu                  the script itself, on a small machine
"""

import argparse
import json
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.figures import ROWS, VLLM, Measure, Row
from bench.measuring import LoadOptions, Report, measure, why_unusable
from bench.models import write_model
from bench.service import Service, serving

SERVE = ("--load-format", "dummy", "--max-model-len", "34000", "--max-num-seqs", "512")
SMALL_MODEL, SMALL_TOKENS, SMALL_LOAD = "llama-tiny", 0.02, 0.03


@dataclass(frozen=True, slots=True)
class Options:
    """The command line."""

    rows: tuple[Row, ...]
    out: Path
    small: bool
    load: LoadOptions
    serve: tuple[str, ...]


class Recorder:
    """Keeps results as lines of JSON, and knows the newest of each key."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.newest: dict[str, Report] = {line["key"]: line for line in map(json.loads, lines)}

    def add(self, key: str, report: Report) -> None:
        """Writes it down, and prints it in a line."""
        self.newest[key] = {"key": key, **report}
        with self._path.open("a") as file:
            print(json.dumps(self.newest[key]), file=file)
        print(json.dumps(self.newest[key]), flush=True)


def run(options: Options, recorder: Recorder) -> None:
    """Measures all rows, model by model."""
    for model in dict.fromkeys(row.model for row in options.rows):
        rows = [row for row in options.rows if row.model == model]
        try:
            _run_model(model, rows, options, recorder)
        except RuntimeError as error:
            for row in rows:
                recorder.add(row.key, {"error": str(error)[-2000:]})


def _run_model(model: str, rows: Sequence[Row], options: Options, recorder: Recorder) -> None:
    with serving(serve_arguments(model, options), log=options.out / f"{model}.log") as service:
        for row in rows:
            recorder.add(row.key, measure_row(service, row, options))


def serve_arguments(model: str, options: Options) -> list[str]:
    """For `batchyard serve`; writes the model's folder."""
    folder = write_model(SMALL_MODEL if options.small else model, options.out / "models" / model)
    return ["--model", str(folder), "--served-model-name", model, *SERVE, *options.serve]


def measure_row(service: Service, row: Row, options: Options) -> Report:
    """The report of one row, on a service of its model."""
    if row.load is None:
        return {"ready_s": round(service.ready_s, 1)}
    load = row.load.scaled(SMALL_LOAD) if options.small else row.load
    return measure(service, row.model, load, options.load)


def table(rows: Iterable[Row], reports: Mapping[str, Report]) -> Iterator[str]:
    """Lines of Markdown for the rows with reports, then what is wrong with these. A ratio above 1 is faster.

    GPU idle and busy: see `bench.measuring.device_shares`.
    """
    yield f"| model, workload | {VLLM} | Batchyard | goal | ratio | GPU idle | GPU busy |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    doubts = []
    for row in rows:
        if (report := reports.get(row.key)) is None:
            continue
        yield f"| {' | '.join(_cells(row, report))} |"
        if doubt := why_unusable(report):
            doubts.append(f"{row.key}: {doubt}")
    yield from ("", *doubts) if doubts else ()


def _cells(row: Row, report: Report) -> Iterator[str]:
    measures = row.measures
    names = " / ".join(measure.metric.name for measure in measures)
    yield f"{row.model} {row.name}, {names}"
    yield _figures([(measure, measure.theirs) for measure in measures])
    ours = [(measure, measure.metric.read(report)) for measure in measures]
    yield _figures(ours) + (" (!)" if why_unusable(report) else "")
    yield _figures([(measure, measure.goal) for measure in measures])
    yield " / ".join(f"{m.metric.ratio(our, m.theirs):.2f}" for m, our in ours if our)
    yield _share(report.get("device_idle"))
    yield _share(report.get("device_busy"))


def _figures(values: Sequence[tuple[Measure, float | None]]) -> str:
    if any(value is None for _, value in values):
        return ""
    text = " / ".join(f"{value:,.{measure.metric.decimals}f}" for measure, value in values)
    return f"{text} {values[0][0].metric.unit}".rstrip()


def _share(value: Any) -> str:
    return "" if value is None else f"{100 * value:.1f}%"


def select(only: Sequence[str], everything: bool) -> tuple[Row, ...]:
    """The rows that `only` names by key or model; without it those with a goal. Raises ValueError."""
    names = {row.key for row in ROWS} | {row.model for row in ROWS}
    if unknown := [name for name in only if name not in names]:
        raise ValueError(f"no row or model {', '.join(unknown)}; there are {', '.join(sorted(names))}")
    if only:
        return tuple(row for row in ROWS if row.key in only or row.model in only)
    return tuple(row for row in ROWS if everything or row.has_goal)


def parse(argv: Sequence[str] | None = None) -> Options:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="ROW", help="rows, or models: all of theirs")
    parser.add_argument("--all", action="store_true", help="rows without a goal too")
    add_arguments(parser)
    given = parser.parse_args(argv)
    try:
        rows = select(given.only, given.all)
    except ValueError as error:
        parser.error(str(error))
    return options_of(given, rows)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How services and load tests are run, and where results go."""
    parser.add_argument("--out", type=Path, default=Path("bench-results"), metavar="DIR")
    parser.add_argument("--small", action="store_true", help="a tiny model and hardly any load, to try this")
    parser.add_argument("--loadgen", type=Path, metavar="FILE", help="a load generator instead of bench.load")
    parser.add_argument("--timeout", type=float, default=240.0, help="seconds for one load test")
    parser.add_argument("--seed", type=int, help="of all prompts, instead of the rows' own")
    parser.add_argument("serve", nargs="*", metavar="FLAG", help="after --: for `batchyard serve`")


def options_of(given: argparse.Namespace, rows: tuple[Row, ...]) -> Options:
    """What `add_arguments` has parsed."""
    tokens = SMALL_TOKENS if given.small else 1.0
    load = LoadOptions(given.loadgen, given.timeout, tokens, given.seed)
    return Options(rows, given.out, given.small, load, tuple(given.serve))


def main() -> None:
    """Measures and prints."""
    options = parse()
    recorder = Recorder(options.out / "results.jsonl")
    # Whatever ends us, the service is ended first.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run(options, recorder)
    finally:
        note = (
            ("", f"With {SMALL_MODEL} for every model, and less load: no comparison.")
            if options.small
            else ()
        )
        print(*note, "", *table(ROWS, recorder.newest), sep="\n", flush=True)
    sys.exit(any(why_unusable(recorder.newest[row.key]) for row in options.rows))


if __name__ == "__main__":
    main()
