"""What each technique gives: `python -m bench.ablation` switches them off one at a time.

The techniques are those of `bench.techniques`. For each, and for none, a service is started per model with
nothing else changed, and asked by the load tests of `bench.serving` named in LOADS. Results go to
DIR/ablation.jsonl as they come; the table shows the newest of each, so that parts can be run again:

    python -m bench.ablation                                   all of it, about a minute and a half for each
    python -m bench.ablation --only none "CUDA graphs"         some
    python -m bench.ablation --rows llama-8b:decode-32         some, or other, load tests
"""

import argparse
import re
import signal
from collections.abc import Iterator, Mapping, Sequence

from bench.figures import ROWS, Row
from bench.measuring import Report, why_unusable
from bench.service import serving
from bench.serving import Options, Recorder, add_arguments, measure_row, options_of, serve_arguments
from bench.techniques import TECHNIQUES
from bench.without import not_patched, switched_off

LOADS = ("llama-8b:decode-32", "llama-8b:mixed-256", "qwen3-0.6b:decode-128")
NOTHING = "none"


def run(names: Sequence[str], options: Options, recorder: Recorder) -> None:
    """Measures all rows without each of the techniques."""
    for name in names:
        for model in dict.fromkeys(row.model for row in options.rows):
            rows = [row for row in options.rows if row.model == model]
            try:
                _run_model(name, model, rows, options, recorder)
            except RuntimeError as error:
                for row in rows:
                    recorder.add(_key(name, row), {"error": str(error)[-2000:]})


def _run_model(name: str, model: str, rows: Sequence[Row], options: Options, recorder: Recorder) -> None:
    flags, environ = ([], {}) if name == NOTHING else switched_off(name)
    words = re.findall(r"[\w.]+", f"{model} without {name}")
    log = options.out / f"{'-'.join(words)}.log"
    with serving([*serve_arguments(model, options), *flags], environ, log) as service:
        if name != NOTHING and (missing := not_patched(name, log.read_text())):
            raise RuntimeError(f"{', '.join(missing)} is not in use here, so there is nothing to switch off")
        for row in rows:
            recorder.add(_key(name, row), measure_row(service, row, options))


def _key(name: str, row: Row) -> str:
    return f"{name} | {row.key}"


def table(rows: Sequence[Row], reports: Mapping[str, Report]) -> Iterator[str]:
    """Lines of Markdown. In brackets: the speed, with 1 for nothing switched off; less is slower."""
    titles = [f"{row.model} {row.name}, {row.measures[0].metric.name}" for row in rows]
    yield f"| switched off | instead | {' | '.join(titles)} |"
    yield "|---|---|" + "--:|" * len(rows)
    doubts = []
    for name in (NOTHING, *TECHNIQUES):
        measured = {row.key: reports.get(_key(name, row)) for row in rows}
        if not any(measured.values()):
            continue
        cells = [_cell(row, measured[row.key], reports.get(_key(NOTHING, row))) for row in rows]
        yield f"| {name} | {'' if name == NOTHING else TECHNIQUES[name].off} | {' | '.join(cells)} |"
        doubts += [
            f"{name}, {key}: {why}"
            for key, report in measured.items()
            if report and (why := why_unusable(report))
        ]
    yield from ("", *doubts) if doubts else ()


def _cell(row: Row, report: Report | None, with_all: Report | None) -> str:
    metric = row.measures[0].metric
    value = metric.read(report or {})
    if report is None or value is None:
        return ""
    whole = metric.read(with_all or {})
    share = f" ({metric.ratio(value, whole):.2f})" if whole and report is not with_all else ""
    doubt = " (!)" if why_unusable(report) else ""
    return f"{value:,.{metric.decimals}f} {metric.unit}".rstrip() + share + doubt


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = (NOTHING, *TECHNIQUES)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="TECHNIQUE")
    keys = [row.key for row in ROWS if row.load]
    parser.add_argument("--rows", nargs="+", choices=keys, default=LOADS, metavar="ROW")
    add_arguments(parser)
    given = parser.parse_args()
    options = options_of(given, tuple(row for row in ROWS if row.key in given.rows))
    recorder = Recorder(options.out / "ablation.jsonl")
    # Whatever ends us, the service is ended first.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run(given.only, options, recorder)
    finally:
        print("", *table(options.rows, recorder.newest), sep="\n", flush=True)


if __name__ == "__main__":
    main()
