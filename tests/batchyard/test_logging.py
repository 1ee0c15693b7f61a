import json
import logging
from typing import Any

import pytest
import structlog
from opentelemetry.sdk.trace import TracerProvider

from batchyard.logging import setup_logging

pytestmark = pytest.mark.usefixtures("own_logging")


def events(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return [json.loads(line) for line in captured.err.splitlines()]


def test_json(capsys):
    setup_logging("worker-3", "info", "json")
    structlog.get_logger().info("loading_weights", done=3, total=9)
    (event,) = events(capsys)
    assert event.pop("timestamp").endswith("Z")
    expected = {"event": "loading_weights", "level": "info", "process": "worker-3", "done": 3, "total": 9}
    assert event == expected


def test_auto_is_json_where_there_is_no_terminal(capsys):
    setup_logging("gateway", "info", "auto")
    structlog.get_logger().info("hello")
    assert events(capsys)[0]["event"] == "hello"


def test_console(capsys):
    setup_logging("gateway", "info", "console")
    structlog.get_logger().info("hello", n=3)
    line = capsys.readouterr().err
    assert "hello" in line
    assert "n=3" in line
    assert not line.startswith("{")


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_level_holds_for_every_logger(capsys, level, expected):
    setup_logging("gateway", level, "json")
    ours, theirs = structlog.get_logger(), logging.getLogger("theirs")
    for name in ("debug", "info", "warning", "error"):
        getattr(ours, name)(name)
        getattr(theirs, name)(name)
    assert [event["event"] for event in events(capsys)] == [name for name in expected for _ in range(2)]


def test_the_standard_library_logs_the_same_way(capsys):
    setup_logging("gateway", "info", "json")
    logging.getLogger("uvicorn").warning("port %d", 80)
    (event,) = events(capsys)
    assert (event["event"], event["level"], event["process"]) == ("port 80", "warning", "gateway")


def test_trace_ids(capsys):
    setup_logging("gateway", "info", "json")
    provider = TracerProvider()
    with provider.get_tracer("test").start_as_current_span("span") as span:
        structlog.get_logger().info("inside")
    structlog.get_logger().info("outside")
    inside, outside = events(capsys)
    context = span.get_span_context()
    assert inside["trace_id"] == f"{context.trace_id:032x}"
    assert inside["span_id"] == f"{context.span_id:016x}"
    assert "trace_id" not in outside
    provider.shutdown()


def failing(prompt: str) -> None:
    """Fails with words of the prompt in a local variable."""
    held = list(prompt.split())
    raise ValueError(f"{len(held)} words are too many")


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_traceback_tells_where_and_what_but_no_values(capsys, log_format):
    """Local variables are prompts, keys and settings."""
    setup_logging("gateway", "info", log_format)
    try:
        failing("terces ym"[::-1])
    except ValueError:
        structlog.get_logger().exception("failed")
    logged = capsys.readouterr().err
    assert "ValueError" in logged
    assert "2 words are too many" in logged
    assert "failing" in logged
    assert "secret" not in logged


def test_one_line_for_an_exception_in_json(capsys):
    setup_logging("gateway", "info", "json")
    try:
        failing("a b")
    except ValueError:
        structlog.get_logger().exception("failed")
    (event,) = events(capsys)
    (stack,) = event["exception"]
    assert (stack["exc_type"], stack["exc_value"]) == ("ValueError", "2 words are too many")
    assert stack["frames"][-1]["name"] == "failing"


def test_set_up_twice_logs_once(capsys):
    setup_logging("gateway", "info", "json")
    setup_logging("gateway", "info", "json")
    structlog.get_logger().info("hello")
    assert len(events(capsys)) == 1
