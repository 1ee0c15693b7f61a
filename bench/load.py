"""Loads a server that speaks OpenAI's streaming completions: `python -m bench.load --workload mixed`.

Several client processes send the requests of a workload of `bench.workloads`, either so many at once (closed
loop, --concurrency) or at Poisson times (open loop, --rate). `ignore_eos` pins the lengths of the answers.
Prints one JSON object: throughput over the whole run, and mean, p50, p95 and p99 in milliseconds of TTFT (to
the first token), ITL (between events), TPOT (per token after the first) and E2E (to the last token).
"""

import argparse
import json
import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import Any

import uvloop

from bench.load_client import Call, Outcome, Share, run_share
from bench.workloads import WORKLOADS, Request, arrival_times, make_requests

_START_S = 120.0  # for all client processes to be there


@dataclass(frozen=True, slots=True)
class Options:
    """The command line."""

    url: str
    model: str
    api_key: str
    workload: str
    requests: int
    concurrency: int
    rate: float
    procs: int
    seed: int
    timeout: float
    scale_tokens: float
    label: str


def plan(options: Options) -> list[Call]:
    """All calls of the test, encoded."""
    times = arrival_times(options.rate, options.requests, options.seed)
    requests = make_requests(options.workload, options.requests, options.seed)
    if options.scale_tokens != 1.0:
        requests = [request.scaled(options.scale_tokens) for request in requests]
    return [
        Call(at, _body(options.model, request), len(request.prompt), request.max_tokens)
        for at, request in zip(times, requests, strict=True)
    ]


def _body(model: str, request: Request) -> bytes:
    body = {
        "model": model,
        "prompt": request.prompt,
        "max_tokens": request.max_tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        **request.sampling,
    }
    return json.dumps(body).encode()


def run(options: Options) -> list[Outcome]:
    """Makes all calls from several processes, which begin together."""
    shares = _shares(options, plan(options))
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(len(shares))
    pipes = [context.Pipe(duplex=False) for _ in shares]
    clients = [
        context.Process(target=_client, args=(share, barrier, sending), daemon=True)
        for share, (_, sending) in zip(shares, pipes, strict=True)
    ]
    for client, (_, sending) in zip(clients, pipes, strict=True):
        client.start()
        sending.close()  # so that we see the end of the pipe when the client dies
    outcomes = [outcome for receiving, _ in pipes for outcome in receiving.recv()]
    for client in clients:
        client.join()
    return outcomes


def _shares(options: Options, calls: list[Call]) -> list[Share]:
    is_open = options.rate > 0
    count = max(1, min(options.procs, len(calls), options.procs if is_open else options.concurrency))
    url = f"{options.url.rstrip('/')}/v1/completions"
    each, more = divmod(0 if is_open else options.concurrency, count)
    return [
        Share(url, calls[i::count], each + (i < more), options.timeout, options.api_key) for i in range(count)
    ]


def _client(share: Share, barrier: Barrier, results: Connection) -> None:
    barrier.wait(_START_S)
    results.send(uvloop.run(run_share(share)))


def report(options: Options, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What is printed. Failed calls count in `failed` and nowhere else."""
    good = [outcome for outcome in outcomes if not outcome.error]
    errors = sorted({outcome.error for outcome in outcomes if outcome.error})
    arrivals = {"rate": options.rate} if options.rate else {"concurrency": options.concurrency}
    counts = {"requests": len(outcomes), "failed": len(outcomes) - len(good)}
    result = {"label": options.label, "workload": options.workload, **counts, **arrivals}
    if good:
        result |= _figures(good)
    if errors:
        result["errors"] = errors[:5]
    return result


def _figures(good: Sequence[Outcome]) -> dict[str, Any]:
    seconds = max(o.end for o in good) - min(o.start for o in good)
    gaps = [b - a for o in good for a, b in zip(o.stamps, o.stamps[1:], strict=False)]
    return {
        "seconds": round(seconds, 3),
        "req_per_s": round(len(good) / seconds, 3),
        "output_tok_per_s": round(sum(o.tokens for o in good) / seconds, 1),
        "input_tok_per_s": round(sum(o.prompt_len for o in good) / seconds, 1),
        "short_outputs": sum(o.tokens != o.asked for o in good),
        "ttft_ms": percentiles([o.stamps[0] - o.start for o in good]),
        "itl_ms": percentiles(gaps),
        "tpot_ms": percentiles([(o.end - o.stamps[0]) / (o.tokens - 1) for o in good if o.tokens > 1]),
        "e2e_ms": percentiles([o.end - o.start for o in good]),
    }


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Mean, p50, p95 and p99 in milliseconds; empty where there is nothing."""
    if not seconds:
        return {}
    ordered = sorted(seconds)
    at = {f"p{q}": ordered[min(len(ordered) - 1, len(ordered) * q // 100)] for q in (50, 95, 99)}
    values = {"mean": sum(ordered) / len(ordered), **at}
    return {name: round(1000 * value, 2) for name, value in values.items()}


def parse(argv: Sequence[str] | None = None) -> Options:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", default="bench", help="its name in the API")
    parser.add_argument("--api-key", default="")
    parser.add_argument("--workload", default="mixed", choices=WORKLOADS)
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--concurrency", type=int, default=256, help="in flight at once, without --rate")
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second, at Poisson times")
    parser.add_argument("--procs", type=int, default=4, help="client processes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for one request")
    parser.add_argument(
        "--scale-tokens", type=float, default=1.0, help="times the lengths: for small machines"
    )
    parser.add_argument("--label", default="", help="printed with the figures")
    return Options(**vars(parser.parse_args(argv)))


def main() -> None:
    """Loads and prints."""
    options = parse()
    print(json.dumps(report(options, run(options))))


if __name__ == "__main__":
    main()
