"""`batchyard why TRACE`: where a request was slow, read from its trace."""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from batchyard.errors import TraceUnread
from batchyard.slowness import SeenSpan, shares

_TIMEOUT_S = 10.0


def main(argv: Sequence[str]) -> None:
    """Prints where the time went, the most first. Raises TraceUnread."""
    parser = argparse.ArgumentParser(
        prog="batchyard why", description="Tells from a trace where its request was slow."
    )
    parser.add_argument(
        "trace",
        help="JSON of one trace: a file, - for standard input, or a URL such as "
        "http://127.0.0.1:16686/api/traces/ID (Jaeger) or http://127.0.0.1:16686/traces/ID (our collector)",
    )
    trace = parser.parse_args(argv).trace
    try:
        found = shares(read(json.loads(_text(trace))))
    except (OSError, URLError, ValueError, KeyError, TypeError) as error:
        raise TraceUnread(f"{trace}: {error}") from error
    for share in found:
        print(f"{share.milliseconds:12.1f} ms  {share.place}")


def read(document: Any) -> list[SeenSpan]:
    """The spans of one trace, from JSON as Jaeger or our own collector gives it. Raises ValueError."""
    if isinstance(document, dict) and document.get("data"):
        return list(_from_jaeger(document["data"][0]["spans"]))
    if isinstance(document, list) and document:
        return list(_from_collector(document))
    raise ValueError("there is no trace in it")


def _text(trace: str) -> str:
    if trace == "-":
        return sys.stdin.read()
    if trace.startswith(("http://", "https://")):
        with urlopen(trace, timeout=_TIMEOUT_S) as answer:
            return str(answer.read().decode())
    return Path(trace).read_text()


def _from_collector(spans: Iterable[Mapping[str, Any]]) -> Iterator[SeenSpan]:
    for span in spans:
        start_ns = int(span["start_ns"])
        yield SeenSpan(
            span["name"],
            span["span_id"],
            span["parent_id"],
            start_ns,
            start_ns + round(span["milliseconds"] * 1e6),
            span["attributes"],
            [(event["name"], int(event["time_ns"]), event) for event in span["events"]],
        )


def _from_jaeger(spans: Iterable[Mapping[str, Any]]) -> Iterator[SeenSpan]:
    """Microseconds there."""
    for span in spans:
        parents = [ref["spanID"] for ref in span.get("references", ()) if ref["refType"] == "CHILD_OF"]
        start_ns = 1000 * span["startTime"]
        events = [(1000 * entry["timestamp"], _fields(entry["fields"])) for entry in span.get("logs") or ()]
        yield SeenSpan(
            span["operationName"],
            span["spanID"],
            parents[0] if parents else "",
            start_ns,
            start_ns + 1000 * span["duration"],
            _fields(span.get("tags") or ()),
            [(str(fields.get("event", "")), at_ns, fields) for at_ns, fields in sorted(events, key=_time)],
        )


def _time(event: tuple[int, Mapping[str, Any]]) -> int:
    return event[0]


def _fields(fields: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    return {each["key"]: each["value"] for each in fields}
