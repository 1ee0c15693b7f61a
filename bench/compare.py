"""Batchyard beside `transformers` on this machine: `python -m bench.compare`, or `make bench`.

Both give greedy answers of one length to the same prompts of mixed lengths, in the same precision, with the
same number of threads: Batchyard as real processes asked over HTTP, transformers by `generate` in this
process, one prompt after another and in static batches. The answers are compared token for token. Takes about
two minutes on two cores.
"""

import argparse
import json
import os
import platform
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from statistics import median
from typing import NoReturn

import torch
import transformers

from batchyard.hub import resolve_model
from bench.baseline import Transformers
from bench.client import Answer, Load, generate
from bench.prompts import LONGEST, SHORTEST, Text
from bench.service import Service, serving

WARM_UP_TOKENS = 4


@dataclass(frozen=True, slots=True)
class Options:
    """The command line."""

    model: str
    device: str
    dtype: str
    concurrency: list[int]
    requests: int
    output_tokens: int
    rounds: int
    threads: int
    timeout: int
    json: Path | None


@dataclass(frozen=True, slots=True)
class Run:
    """All requests, once. A step is one pass of a batch through the model."""

    who: str
    concurrency: int
    requests: int
    output_tokens: int  # of all requests
    seconds: float
    steps: int
    busy_seconds: float | None = None  # the worker's, in model and sampling
    ttft_p50: float | None = None  # seconds
    tpot_p50: float | None = None  # seconds

    @property
    def tokens_per_second(self) -> float:
        return self.output_tokens / self.seconds


BATCHYARD, ONE_AFTER_ANOTHER, STATIC_BATCH = (
    "Batchyard",
    "transformers, one after another",
    "transformers, static batch",
)


class Comparison:
    """Measures, and keeps the answers of everyone."""

    def __init__(self, options: Options, service: Service, baseline: Transformers, text: Text) -> None:
        self._options = options
        self._service = service
        self._baseline = baseline
        self._text = text
        self._prompts = text.prompts(options.requests)
        self._salts = iter(range(sys.maxsize))
        self.runs: list[Run] = []
        self.texts: list[list[str]] = []  # of each run of Batchyard
        self.batched: list[list[list[int]]] = []  # token ids, of each run in static batches
        self.expected: list[list[int]] = []  # token ids, of transformers one after another

    def measure(self) -> None:
        """All runs, those to be compared next to each other in time."""
        for concurrency in self._options.concurrency:
            self._ask_batchyard(concurrency, WARM_UP_TOKENS)
            self._baseline.generate(self._prompts[:concurrency], WARM_UP_TOKENS, concurrency)
        for _ in range(self._options.rounds):
            for concurrency in self._options.concurrency:
                self.runs += [self._batchyard(concurrency), self._transformers(concurrency)]
        if not self.expected:
            self.expected, _ = self._baseline.generate(self._prompts, self._options.output_tokens, 1)

    def mismatches(self) -> dict[str, str]:
        """How many answers differ from those of transformers one after another, by who gave them."""
        ids = self._service.token_ids(self._options.model, self._prompts, self._options.output_tokens)
        wanted = [self._text.decode(answer) for answer in self.expected]
        texts = [differing(answers, wanted) for answers in self.texts]
        batched = [differing(answers, self.expected) for answers in self.batched]
        return {
            "Batchyard, all at once, token ids": _of([differing(ids, self.expected)], len(wanted)),
            "Batchyard, every timed run, text": _of(texts, len(wanted)),
            "transformers in static batches, token ids": _of(batched, len(wanted)),
        }

    def _batchyard(self, concurrency: int) -> Run:
        before = self._service.counters()
        answers, seconds = self._ask_batchyard(concurrency, self._options.output_tokens)
        after = self._service.counters()
        self.texts.append([answer.text for answer in answers])
        return Run(
            BATCHYARD,
            concurrency,
            len(answers),
            sum(answer.num_tokens for answer in answers),
            seconds,
            round(after.steps - before.steps),
            after.step_seconds - before.step_seconds,
            median(answer.ttft for answer in answers),
            median(answer.tpot for answer in answers),
        )

    def _ask_batchyard(self, concurrency: int, output_tokens: int) -> tuple[list[Answer], float]:
        salt = str(next(self._salts))
        load = Load(self._options.model, self._prompts, output_tokens, concurrency, salt)
        return generate(self._service.port, load)

    def _transformers(self, concurrency: int) -> Run:
        answers, seconds = self._baseline.generate(self._prompts, self._options.output_tokens, concurrency)
        if concurrency == 1:
            self.expected = answers
        else:
            self.batched.append(answers)
        batches = -(-len(answers) // concurrency)
        return Run(
            ONE_AFTER_ANOTHER if concurrency == 1 else STATIC_BATCH,
            concurrency,
            len(answers),
            sum(map(len, answers)),
            seconds,
            batches * self._options.output_tokens,
        )


def differing(answers: Sequence[object], wanted: Sequence[object]) -> int:
    """How many of `answers` are not as `wanted`."""
    return sum(answer != want for answer, want in zip(answers, wanted, strict=True))


def _of(counts: list[int], answers: int) -> str:
    return f"{sum(counts)} of {len(counts) * answers} differ" if counts else "none were asked for"


def fastest(runs: Sequence[Run]) -> list[Run]:
    """Of the rounds, the one that others on this machine disturbed least."""
    best: dict[tuple[int, str], Run] = {}
    for run in sorted(runs, key=lambda run: run.seconds):
        best.setdefault((run.concurrency, run.who), run)
    return sorted(best.values(), key=lambda run: (run.concurrency, run.who))


def table(runs: Sequence[Run]) -> Iterator[str]:
    """Lines of Markdown."""
    names = ("who", "in flight", "requests", "tokens", "seconds", "tok/s", "ms/step", "in worker", "ratio")
    yield f"| {' | '.join(names)} |"
    yield "|---|--:|--:|--:|--:|--:|--:|--:|--:|"
    batch = {run.concurrency: run.tokens_per_second for run in runs if run.who != BATCHYARD}
    for run in runs:
        busy = "" if run.busy_seconds is None else f"{1e3 * run.busy_seconds / run.steps:.2f}"
        cells = [
            f"{run.who:31}",
            f"{run.concurrency:3}",
            f"{run.requests:4}",
            f"{run.output_tokens:6}",
            f"{run.seconds:6.2f}",
            f"{run.tokens_per_second:7.1f}",
            f"{1e3 * run.seconds / run.steps:6.2f}",
            f"{busy:>6}",
            f"{run.tokens_per_second / batch[run.concurrency]:5.2f}",
        ]
        yield f"| {' | '.join(cells)} |"


def facts(options: Options, load: float) -> dict[str, str]:
    """What one must know to read the figures. `load`: the machine's load average before we began."""
    machine = torch.cuda.get_device_name() if options.device == "cuda" else processor()
    return {
        "date": date.today().isoformat(),
        "machine": f"{machine}, {len(os.sched_getaffinity(0))} cores for all processes",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}",
        "model": f"{options.model}, {options.dtype} on {options.device}",
        "threads": f"{options.threads} in the worker, {torch.get_num_threads()} in transformers",
        "requests": f"{options.requests}, greedy, {SHORTEST} to {LONGEST} tokens of prompt, "
        f"{options.output_tokens} of answer",
        "rounds": f"{options.rounds}, of which the fastest is shown",
        "load": f"{load:.1f} runnable processes in the minute before (anything above 0 disturbs the figures)",
    }


def processor() -> str:
    """The name of the CPU."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "a CPU"


@contextmanager
def bounded(seconds: int) -> Iterator[None]:
    """Raises TimeoutError inside after so many seconds; SIGTERM ends the block as Ctrl-C does."""

    def overdue(*_: object) -> NoReturn:
        raise TimeoutError(f"not done after {seconds} s")

    signal.signal(signal.SIGALRM, overdue)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def parse() -> Options:
    """The command line, with defaults for a small machine."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--model", default="demo", help="as for `batchyard serve`")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32], help="requests at once")
    parser.add_argument("--requests", type=int, default=32, help="in each run")
    parser.add_argument("--output-tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--rounds", type=int, default=2, help="how often to measure everything")
    parser.add_argument("--threads", type=int, default=cores, help="of the worker, and of transformers")
    parser.add_argument("--timeout", type=int, default=900, help="seconds after which to give up")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run there as well")
    return Options(**vars(parser.parse_args()))


def main() -> None:
    """Measures and prints."""
    options = parse()
    load = os.getloadavg()[0]
    torch.set_num_threads(options.threads)
    transformers.utils.logging.disable_progress_bar()
    folder = resolve_model(options.model)
    arguments = ["--model", options.model, "--device", options.device, "--dtype", options.dtype]
    threads = {"OMP_NUM_THREADS": str(options.threads)}
    with bounded(options.timeout), serving(arguments, threads) as service:
        baseline = Transformers(folder, options.device, options.dtype)
        comparison = Comparison(options, service, baseline, Text(folder))
        known = facts(options, load)
        for name, fact in known.items():
            print(f"{name:10}{fact}", flush=True)
        comparison.measure()
        mismatches = comparison.mismatches()
    print("", *table(fastest(comparison.runs)), "", sep="\n")
    print("Answers beside those of transformers one after another:")
    for who, count in mismatches.items():
        print(f"  {who}: {count}")
    if options.json:
        record = known | {"runs": [asdict(run) for run in comparison.runs], "answers": mismatches}
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
