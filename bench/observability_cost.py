"""What it costs to be seen: `python -m bench.observability_cost`, on the demo model.

    python -m bench.observability_cost --concurrency 128 --tokens 256 -- --model qwen3-0.6b \\
        --load-format dummy --served-model-name demo

Two services side by side, of which one at a time has work. One has all on: a share of its requests is traced
and sent to a collector by OTLP, the others are recorded for the case that they are slow, and its metrics are
read as Prometheus does it with deploy/prometheus.yml. Of the other nothing is traced or read (what happens
is counted all the same: that has no switch). They take turns, A B B A, with the same requests; the ratios
are those of neighbours, so that a machine that becomes slower meanwhile is no part of them.
"""

import argparse
import asyncio
import itertools
import random
import statistics
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import grpc
import uvloop

from bench.lean_client import Client, completion_body
from bench.service import Service, serving
from bench.stand_ins import machine, use_of

_TRACES = "opentelemetry.proto.collector.trace.v1.TraceService"
_RESAMPLES = 10_000
_WORDS = ("import", "return", "list", "of", "the", "open", "path", "for", "value", "class", "write", "time")


@dataclass(frozen=True, slots=True)
class Options:
    """The command line."""

    concurrency: int
    requests: int
    words: int
    tokens: int
    rounds: int
    sample: float
    serve: list[str]


@dataclass(frozen=True, slots=True)
class Burst:
    """Of one service: tokens, seconds of the wall, seconds of CPU of all its processes."""

    tokens: int
    wall_s: float
    cpu_s: float


class Sink:
    """A collector that throws away what it gets, and counts it."""

    def __init__(self) -> None:
        self.batches = 0
        self.size = 0  # bytes
        self._server = grpc.server(ThreadPoolExecutor(1))
        export: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "Export": grpc.unary_unary_rpc_method_handler(self._take)
        }
        handler = grpc.method_handlers_generic_handler(_TRACES, export)
        self._server.add_generic_rpc_handlers([handler])
        self.url = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def _take(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.batches += 1
        self.size += len(request)
        return b""

    def stop(self) -> None:
        """Takes nothing more."""
        self._server.stop(0).wait()


@contextmanager
def scraped(service: Service) -> Iterator[None]:
    """Reads all metrics every five seconds, and those of the job `cpu` every second."""
    over = threading.Event()
    targets = [service.port, service.metrics_port, service.metrics_port + 1]

    def read() -> None:
        for second in itertools.count():
            names = "?name[]=batchyard_cpu_saturation_ratio"
            for port, query in itertools.product(targets, ["", names] if second % 5 == 0 else [names]):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics{query}", timeout=10).read()
            if over.wait(1.0):
                return

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def cpu_s(pid: int) -> float:
    """Seconds of CPU that a process and all below it have had."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return use_of(pid).cpu_s + sum(cpu_s(int(child)) for child in children)


def burst(service: Service, options: Options, round_: int) -> Burst:
    """The requests of a round, so many at a time. Raises RuntimeError where one fails."""
    before, began = cpu_s(service.pid), time.perf_counter()
    uvloop.run(_ask_all(service.port, options, round_))
    wall = time.perf_counter() - began
    return Burst(options.requests * options.tokens, wall, cpu_s(service.pid) - before)


async def _ask_all(port: int, options: Options, round_: int) -> None:
    client, numbers = Client("127.0.0.1", port), iter(range(options.requests))

    async def ask_on() -> None:
        for number in numbers:
            chance = random.Random(f"{round_}-{number}")
            prompt = " ".join(chance.choices(_WORDS, k=options.words))
            reply = await client.ask(f"cost-{number}", completion_body(prompt, options.tokens))
            if reply.status != 200 or reply.broken:
                raise RuntimeError(f"a request failed: {reply}")

    await asyncio.gather(*(ask_on() for _ in range(options.concurrency)))
    client.close()


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """Of the median, 95%, by bootstrap."""
    chance = random.Random(0)
    medians = sorted(statistics.median(chance.choices(ratios, k=len(ratios))) for _ in range(_RESAMPLES))
    return medians[_RESAMPLES // 40], medians[-_RESAMPLES // 40]


def table(off: Sequence[Burst], on: Sequence[Burst]) -> Iterator[str]:
    """Lines of Markdown. A ratio is that of a burst with all on to its neighbour with nothing."""
    yield "| | off | on | on / off | 95% |"
    yield "|---|--:|--:|--:|--:|"
    figures: dict[str, Callable[[Burst], float]] = {
        "tokens a second": lambda burst: burst.tokens / burst.wall_s,
        "CPU ms per 1,000 tokens": lambda burst: 1e6 * burst.cpu_s / burst.tokens,
    }
    for name, figure in figures.items():
        ratios = [figure(b) / figure(a) for a, b in zip(off, on, strict=True)]
        low, high = interval(ratios)
        middles = " | ".join(f"{statistics.median(map(figure, bursts)):,.1f}" for bursts in (off, on))
        yield f"| {name} | {middles} | {statistics.median(ratios):.4f} | {low:.4f} to {high:.4f} |"


def measure(options: Options) -> None:
    """Prints the table."""
    sink = Sink()
    seen = ["--otlp", sink.url, "--trace-sample", str(options.sample)]
    off: list[Burst] = []
    on: list[Burst] = []
    with serving(options.serve) as plain, serving([*options.serve, *seen]) as watched:
        for round_ in range(-1, options.rounds):
            for service in (plain, watched) if round_ % 2 else (watched, plain):
                with scraped(service) if service is watched else nullcontext():
                    took = burst(service, options, round_)
                if round_ >= 0:  # the first one warms up
                    (on if service is watched else off).append(took)
    sink.stop()
    print("", *table(off, on), sep="\n")
    print(f"\nsent to the collector: {sink.batches} batches, {sink.size / 2**20:.1f} MiB")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--requests", type=int, default=64, help="in a round")
    parser.add_argument("--words", type=int, default=12, help="of a prompt")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--sample", type=float, default=0.1, help="share of requests that are traced")
    parser.add_argument("serve", nargs="*", metavar="FLAG", help="after --: for `batchyard serve`")
    options = Options(**vars(parser.parse_args()))
    print(f"{machine()}; {options}", flush=True)
    measure(options)


if __name__ == "__main__":
    main()
