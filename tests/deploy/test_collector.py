"""The collector takes what our own telemetry exports, over real sockets."""

import importlib.util
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from batchyard.spans import Event, Span, new_trace
from batchyard.telemetry import Telemetry

FILE = Path(__file__).parents[2] / "deploy/collector/collector.py"


@pytest.fixture(scope="module")
def collector() -> ModuleType:
    spec = importlib.util.spec_from_file_location("collector", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["collector"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def running(collector) -> Iterator[tuple[str, str]]:
    """OTLP endpoint and URL of a running collector."""
    traces = collector.Traces()
    otlp, otlp_port = collector.serve_otlp(traces, "127.0.0.1:0")
    with collector.serve_http(traces, "127.0.0.1", 0) as http:
        http.RequestHandlerClass.log_message = lambda *_: None
        threading.Thread(target=http.serve_forever, args=(0.01,)).start()
        yield f"http://127.0.0.1:{otlp_port}", f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
    otlp.stop(None).wait()


def get(url):
    with urlopen(url, timeout=5) as answer:
        return json.load(answer)


def test_shows_the_trace_that_telemetry_sent(running):
    endpoint, url = running
    telemetry = Telemetry("batchyard-gateway", "gateway-1", endpoint, sample=1.0)
    parent = new_trace(sampled=True)
    start = 1_700_000_000_000_000_000
    inner = [Event("done", start + 2, {"ok": True})]
    telemetry.spans.add(Span("tokenize", parent.child(), parent.span_id, start + 1, start + 3, {}, inner))
    attributes = {"tokens": 3, "stop": ["a", "b"]}
    telemetry.spans.add(Span("POST /v1/completions", parent, 0, start, start + 4, attributes))
    telemetry.shutdown()

    (summary,) = get(f"{url}/traces")
    assert summary["trace_id"] == f"{parent.trace_id:032x}"
    assert (summary["name"], summary["services"], summary["spans"]) == (
        "POST /v1/completions",
        ["batchyard-gateway"],
        2,
    )
    outer, inner = get(f"{url}/traces/{summary['trace_id']}")
    assert outer["parent_id"] == ""
    assert inner["parent_id"] == outer["span_id"]
    assert outer["attributes"] == {"tokens": 3, "stop": ["a", "b"]}
    (event,) = inner["events"]
    assert (event["name"], event["ok"]) == ("done", True)
    assert event["time_ns"] >= inner["start_ns"]
    assert 0 <= inner["milliseconds"] <= outer["milliseconds"] == summary["milliseconds"]


def test_unknown_trace_is_404(running):
    with pytest.raises(HTTPError, match="404"):
        urlopen(f"{running[1]}/traces/abc", timeout=5)


def test_oldest_trace_goes_when_there_are_too_many(collector):
    traces = collector.Traces(max_traces=2)
    for trace_id in "abc":
        traces.add(trace_id, {"name": trace_id, "service": "s", "start_ns": 0, "milliseconds": 1.0})
    assert [summary["trace_id"] for summary in traces.summaries()] == ["c", "b"]


def test_traces_by_service(running):
    endpoint, url = running
    for service in ("gateway", "worker"):
        telemetry = Telemetry(service, "1", endpoint, sample=1.0)
        telemetry.spans.add(Span(f"by {service}", new_trace(sampled=True), 0, 1, 2, {}))
        telemetry.shutdown()
    assert {trace["name"] for trace in get(f"{url}/traces")} == {"by gateway", "by worker"}
    assert [trace["name"] for trace in get(f"{url}/traces?service=worker")] == ["by worker"]
