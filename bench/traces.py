"""Whether a trace backend has every span of many requests at once.

    python -m bench.traces --otlp http://127.0.0.1:4317 --backend http://127.0.0.1:16686

Starts the whole service with the demo model on the CPU, sends requests together, each in a trace of its own,
and reads the traces back by the backend's API: Jaeger's, that of deploy/collector, or Arize Phoenix's.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import urlopen

import aiohttp

from batchyard.slowness import SeenSpan, slowest
from batchyard.spans import TraceContext, new_trace
from batchyard.why import read
from bench.service import Service, serving

_PATIENCE_S = 60.0
PARENTS = {  # of the spans of a request that nothing happens to
    "tokenize": "POST /v1/chat/completions",
    "generate": "POST /v1/chat/completions",
    "scheduler.queue": "generate",
    "prefix.match": "generate",
    "scheduler.run": "generate",
    "prefill": "scheduler.run",
    "decode": "scheduler.run",
}
_SPANS = len(PARENTS) + 1

Reader = Callable[[Sequence[TraceContext]], dict[int, list[SeenSpan]]]  # by trace, of those that are there


async def ask(service: Service, contexts: Sequence[TraceContext], tokens: int) -> float:
    """All at once; the seconds that it took. Raises RuntimeError when one is not answered."""
    started = time.perf_counter()
    connector = aiohttp.TCPConnector(limit=0)
    url = f"http://127.0.0.1:{service.port}/v1/chat/completions"

    async def one(session: aiohttp.ClientSession, number: int, context: TraceContext) -> None:
        body = {
            "model": "demo",
            "messages": [{"role": "user", "content": f"What does module number {number} do?"}],
            "max_tokens": tokens,
            "ignore_eos": True,
        }
        headers = {"traceparent": context.traceparent}
        async with session.post(url, json=body, headers=headers) as reply:
            if reply.status != 200:
                raise RuntimeError(await reply.text())
            await reply.read()

    async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as group:
        for number, context in enumerate(contexts):
            group.create_task(one(session, number, context))
    return time.perf_counter() - started


def reader_of(backend: str) -> Reader:
    """How to read traces from `backend`, by what it answers to."""
    if _get(f"{backend}/api/services") is not None:
        return lambda contexts: _one_by_one(f"{backend}/api/traces", contexts)
    if _get(f"{backend}/traces") is not None:
        return lambda contexts: _one_by_one(f"{backend}/traces", contexts)
    return lambda contexts: _from_phoenix(backend, contexts)


def _get(url: str) -> Any:
    """The JSON there; None where there is none."""
    try:
        with urlopen(url, timeout=30) as answer:
            return json.load(answer)
    except (HTTPError, ValueError):
        return None


def _one_by_one(folder: str, contexts: Sequence[TraceContext]) -> dict[int, list[SeenSpan]]:
    documents = {context.trace_id: _get(f"{folder}/{context.trace_id:032x}") for context in contexts}
    return {trace_id: read(document) for trace_id, document in documents.items() if document}


def _from_phoenix(backend: str, contexts: Sequence[TraceContext]) -> dict[int, list[SeenSpan]]:
    """Its REST API gives all spans of a project, page by page."""
    found: dict[int, list[SeenSpan]] = {context.trace_id: [] for context in contexts}
    cursor: str | None = ""
    while cursor is not None:
        page = _get(f"{backend}/v1/projects/default/spans?limit=1000&cursor={quote(cursor)}")
        for span in page["data"]:
            if (trace_id := int(span["context"]["trace_id"], 16)) in found:
                found[trace_id].append(_phoenix_span(span))
        cursor = page["next_cursor"]
    return {trace_id: spans for trace_id, spans in found.items() if spans}


def _phoenix_span(span: dict[str, Any]) -> SeenSpan:
    times = [datetime.fromisoformat(span[key]).timestamp() for key in ("start_time", "end_time")]
    start_ns, end_ns = (round(seconds * 1e9) for seconds in times)
    events = [
        (each["name"], round(datetime.fromisoformat(each["timestamp"]).timestamp() * 1e9), each["attributes"])
        for each in span["events"]
    ]
    ids = span["context"]["span_id"], span["parent_id"] or ""
    return SeenSpan(span["name"], *ids, start_ns, end_ns, span["attributes"], events)


def wait_for_all(read_traces: Reader, contexts: Sequence[TraceContext]) -> dict[int, list[SeenSpan]]:
    """What is there once all is, or after a while."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        traces = read_traces(contexts)
        if sum(map(len, traces.values())) >= _SPANS * len(contexts) or time.monotonic() > deadline:
            return traces
        time.sleep(0.5)


def report(contexts: Sequence[TraceContext], traces: dict[int, list[SeenSpan]], seconds: float) -> None:
    """Prints the table."""
    received = sum(map(len, traces.values()))
    orphans = chains = 0
    for context in contexts:
        spans = traces.get(context.trace_id, [])
        names = {span.span_id: span.name for span in spans}
        clients = f"{context.span_id:016x}"
        orphans += sum(span.parent_id not in names and span.parent_id != clients for span in spans)
        parents = {span.name: names.get(span.parent_id) for span in spans if span.parent_id in names}
        chains += parents == PARENTS
    slow = max(traces.values(), key=lambda spans: max(span.ms for span in spans))
    print("| requests at once | seconds | spans | missing | orphaned | whole chains | the slowest |")
    print("|---|---|---|---|---|---|---|")
    missing = _SPANS * len(contexts) - received
    share = slowest(slow)
    told = f"{share.milliseconds:.0f} ms of {max(span.ms for span in slow):.0f} ms: {share.place}"
    print(f"| {len(contexts)} | {seconds:.1f} | {received} | {missing} | {orphans} | {chains} | {told} |")


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--otlp", required=True, help="the backend's gRPC endpoint, http://127.0.0.1:4317")
    parser.add_argument("--backend", required=True, help="where it is read, http://127.0.0.1:16686")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=16, help="of each answer")
    given = parser.parse_args()
    contexts = [new_trace(sampled=True) for _ in range(given.requests)]
    read_traces = reader_of(given.backend.rstrip("/"))
    with serving(["--model", "demo", "--device", "cpu", "--otlp", given.otlp]) as service:
        seconds = asyncio.run(ask(service, contexts, given.tokens))
        report(contexts, wait_for_all(read_traces, contexts), seconds)


if __name__ == "__main__":
    main()
