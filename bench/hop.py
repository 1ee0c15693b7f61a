"""What the hop between scheduler and worker costs: `python -m bench.hop`, on the demo model.

    python -m bench.hop --model llama-8b --rows 1 32 128 -- --load-format dummy --max-model-len 34000

The same decode load, driven by the same scheduler, on the same worker reached in three ways: in this process
without gRPC, over a Unix socket as `batchyard serve` does it, and over that with --delay-ms more in each
direction. Tokens per second of the steady decode, the median of the rounds; the first round warms up. The
ways over the socket take turns.
"""

import argparse
import asyncio
import gc
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import uvloop

from batchyard.config import WorkerSettings
from batchyard.logging import setup_logging
from batchyard.probe import grpc_problem
from batchyard.settings import load, to_env
from bench.decoding import Decode, tokens_per_second
from bench.in_process import worker_in_process
from bench.models import SHAPES, write_model
from bench.service import environment
from scheduler.lease import Lease
from scheduler.transport import GrpcTransport, Transport

IN_PROCESS, SOCKET, DELAYED = "in-process", "Unix socket", "delayed"

_READY_S, _END_S = 180.0, 20.0

Rates = dict[tuple[int, str], list[float]]  # tokens/s of each round, by rows and way


@dataclass(frozen=True, slots=True)
class Options:
    """The command line."""

    model: str
    rows: list[int]
    prompt: int
    answer: int
    rounds: int
    delay_ms: float
    steps_in_flight: int
    timeout: float
    worker: list[str]

    def loads(self) -> Iterator[Decode]:
        """A warm-up and the rounds, for each number of rows."""
        for rows in self.rows:
            for _ in range(self.rounds + 1):
                yield Decode(rows, self.prompt, self.answer, self.timeout)


async def measure(options: Options, settings: WorkerSettings) -> Rates:
    """All ways, one worker at a time: the GPU's memory holds but one."""
    rates: Rates = {}
    with tempfile.TemporaryDirectory(prefix="hop-", dir="/tmp") as folder:
        near, far = f"unix:{folder}/near.sock", f"unix:{folder}/far.sock"
        # Nobody's, or a scheduler that happens to run here would step it too.
        nobody = (f"unix:{folder}/scheduler.sock",)
        ours = settings.model_copy(update={"listen": near, "scheduler_address": nobody})
        with _worker(ours) as worker, _proxy(far, near, options.delay_ms) as proxy:
            await _serving(near, worker)
            await _serving(far, proxy)
            transports = {SOCKET: GrpcTransport(near, Lease()), DELAYED: GrpcTransport(far, Lease())}
            await _measure(transports, options, rates)
    async with worker_in_process(settings) as transport:
        await _measure({IN_PROCESS: transport}, options, rates)
    return rates


async def _measure(transports: Mapping[str, Transport], options: Options, rates: Rates) -> None:
    # As the scheduler and the worker do when they are ready.
    gc.collect()
    gc.freeze()
    for decode in options.loads():
        for way, transport in transports.items():
            rate = await tokens_per_second(transport, decode, options.steps_in_flight)
            rates.setdefault((decode.rows, way), []).append(rate)
            print(f"{decode.rows} rows, {way}: {rate:,.0f} tok/s", file=sys.stderr, flush=True)
    for transport in transports.values():
        await transport.close()


def table(rates: Rates, delay_ms: float) -> Iterator[str]:
    """Lines of Markdown. Ratio: in tokens per second, to the line that is named."""
    yield "| rows | way to the worker | tok/s | ms/step | ratio | to |"
    yield "|--:|---|--:|--:|--:|---|"
    names = {DELAYED: f"Unix socket, {delay_ms:g} ms more each way"}
    against = {SOCKET: IN_PROCESS, DELAYED: SOCKET}
    middle = {key: median(rounds[1:] or rounds) for key, rounds in rates.items()}
    for rows in dict.fromkeys(rows for rows, _ in rates):
        for way in (IN_PROCESS, SOCKET, DELAYED):
            rate, other = middle[rows, way], against.get(way)
            ratio = f"{rate / middle[rows, other]:.3f}" if other else ""
            cells = [names.get(way, way), f"{rate:,.0f}", f"{1000 * rows / rate:.3f}", ratio, other or ""]
            yield f"| {rows} | {' | '.join(cells)} |"


@contextmanager
def _worker(settings: WorkerSettings) -> Iterator[subprocess.Popen[bytes]]:
    with _process([sys.executable, "-P", "-m", "batchyard.lifeline", "worker"], to_env(settings)) as worker:
        yield worker


@contextmanager
def _proxy(listen: str, to: str, delay_ms: float) -> Iterator[subprocess.Popen[bytes]]:
    flags = ["--listen", listen, "--to", to, "--delay-ms", str(delay_ms), "--end-with-parent"]
    with _process([sys.executable, "-P", "-m", "bench.delay_proxy", *flags], {}) as proxy:
        yield proxy


@contextmanager
def _process(command: Sequence[str], environ: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Ends when its standard input does, so it cannot outlive us. What it prints is standard error's."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=sys.stderr, env=environment(environ), start_new_session=True
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def _serving(address: str, process: subprocess.Popen[bytes]) -> None:
    """Until the worker is ready at `address`, where `process` serves. Raises RuntimeError, TimeoutError."""
    async with asyncio.timeout(_READY_S):
        while await grpc_problem(address):
            if process.poll() is not None:
                raise RuntimeError(f"{address} ended with {process.returncode}; its last words are above")
            await asyncio.sleep(0.1)


def parse(argv: Sequence[str] | None = None) -> Options:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo", help=f"as for `batchyard serve`, or {', '.join(SHAPES)}")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 32], help="requests that decode at once")
    parser.add_argument("--prompt", type=int, default=128, help="tokens")
    parser.add_argument("--answer", type=int, default=512, help="tokens")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--delay-ms", type=float, default=1.0)
    parser.add_argument("--steps-in-flight", type=int, default=2, help="as for `batchyard serve`")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for one round")
    parser.add_argument("worker", nargs="*", metavar="FLAG", help="after --: for `batchyard worker`")
    return Options(**vars(parser.parse_args(argv)))


def main() -> None:
    """Measures and prints."""
    options = parse()
    setup_logging("hop", "warning", "auto")
    # Whatever ends us, the worker is ended first.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="hop-model-") as folder:
        model = options.model
        if model in SHAPES:
            model = str(write_model(model, Path(folder)))
        settings = load(WorkerSettings, ["--model", model, *options.worker], os.environ)
        rates = uvloop.run(measure(options, settings))
    print("", *table(rates, options.delay_ms), sep="\n")


if __name__ == "__main__":
    main()
