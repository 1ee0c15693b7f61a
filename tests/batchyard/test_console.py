import io
import json

import pytest

from batchyard.config import ServeSettings
from batchyard.console import Console, Loading


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def line(event: str, level: str = "info", **more: object) -> str:
    return json.dumps({"event": event, "level": level, "process": "inner", **more})


def shown(stream: io.StringIO, lines: list[str], **settings: object) -> list[str]:
    console = Console(stream, ServeSettings(**settings))  # type: ignore[arg-type]
    for text in lines:
        console.child_line("worker-0", text)
    return stream.getvalue().splitlines()


class TestLoading:
    def test_one_worker(self):
        loading = Loading(workers=1)
        loading.update("worker-0", 1_234_000_000, 2_700_000_000)
        assert str(loading) == "Loading weights: 45% (1.23 of 2.70 GB)"

    def test_waits_for_every_worker(self):
        loading = Loading(workers=2)
        loading.update("worker-0", 10, 10)
        assert loading.percent == 50
        loading.update("worker-1", 5, 10)
        assert loading.percent == 75
        loading.update("worker-1", 10, 10)
        assert str(loading) == "Loading weights: 100%, warming up"

    def test_nothing_to_load(self):
        loading = Loading(workers=1)
        loading.update("worker-0", 0, 0)
        assert loading.percent == 0


class TestLogLines:
    def test_from_warning_on(self):
        lines = [line(level, level) for level in ("debug", "info", "warning", "error", "critical")]
        events = [json.loads(text)["event"] for text in shown(io.StringIO(), lines)]
        assert events == ["warning", "error", "critical"]

    @pytest.mark.parametrize(
        ("level", "expected"),
        [
            ("debug", ["debug", "info", "warning", "error"]),
            ("warning", ["warning", "error"]),
            ("error", ["error"]),
        ],
    )
    def test_log_level(self, level, expected):
        lines = [line(level, level) for level in ("debug", "info", "warning", "error")]
        output = shown(io.StringIO(), lines, log_level=level)
        assert [json.loads(text)["event"] for text in output] == expected

    def test_names_the_process(self):
        (text,) = shown(io.StringIO(), [line("odd", "warning", n=3)])
        assert json.loads(text) == {"event": "odd", "level": "warning", "process": "worker-0", "n": 3}
        (text,) = shown(io.StringIO(), [line("odd", "warning", n=3)], log_format="console")
        assert "odd" in text
        assert "process=worker-0" in text

    @pytest.mark.parametrize("text", ["plain", "{not json", '{"json": "but no event"}', '{"event": 3}'])
    def test_other_text_is_shown_as_it_is(self, text):
        assert shown(io.StringIO(), [text], log_format="console") == [f"worker-0: {text}"]
        (as_json,) = shown(io.StringIO(), [text], log_format="json")
        assert json.loads(as_json) == {"process": "worker-0", "event": text}

    def test_blank_lines_are_not(self):
        assert shown(io.StringIO(), ["", "  "]) == []

    def test_traceback(self):
        frames = [{"filename": "a.py", "lineno": 3, "name": "f"}]
        stacks = [
            {"exc_type": "ValueError", "exc_value": "late", "frames": frames},
            {"exc_type": "KeyError", "exc_value": "'x'", "frames": frames},
        ]
        output = shown(io.StringIO(), [line("crashed", "error", exception=stacks)], log_format="console")
        assert output[1:] == [
            "Traceback (most recent call last):",
            '  File "a.py", line 3, in f',
            "KeyError: 'x'",
            "Traceback (most recent call last):",
            '  File "a.py", line 3, in f',
            "ValueError: late",
        ]


class TestStatus:
    REPORTS = [line("loading_weights", done=done, total=40) for done in range(41)]

    def test_a_line_for_each_tenth(self):
        lines = shown(io.StringIO(), self.REPORTS)
        assert [text.split()[2] for text in lines] == [
            *(f"{tenth}%" for tenth in range(0, 100, 10)),
            "100%,",
        ]

    def test_json(self):
        lines = shown(io.StringIO(), self.REPORTS[:1], log_format="json")
        assert json.loads(lines[0])["event"] == "Loading weights: 0% (0.00 of 0.00 GB)"

    def test_one_line_on_a_terminal(self):
        terminal = Terminal()
        shown(terminal, self.REPORTS)
        assert "\n" not in terminal.getvalue()
        assert terminal.getvalue().split("\r\x1b[K")[1:][-1] == "Loading weights: 100%, warming up"
        assert len(terminal.getvalue().split("\r\x1b[K")) == 42

    def test_log_lines_go_above_it(self):
        terminal = Terminal()
        console = Console(terminal, ServeSettings())
        console.status("Starting")
        console.child_line("worker-0", "words")
        console.clear()
        assert terminal.getvalue() == "\r\x1b[KStarting\r\x1b[Kworker-0: words\nStarting\r\x1b[K"

    def test_fits_the_terminal(self, monkeypatch):
        monkeypatch.setenv("COLUMNS", "10")
        terminal = Terminal()
        Console(terminal, ServeSettings()).status("0123456789")
        assert terminal.getvalue() == "\r\x1b[K012345678"

    def test_a_worker_that_comes_back_is_not_shown_loading(self):
        stream = io.StringIO()
        shown(stream, [self.REPORTS[40], self.REPORTS[0]])
        assert len(stream.getvalue().splitlines()) == 1

    @pytest.mark.parametrize("more", [{}, {"done": "1", "total": 2}, {"done": 1}])
    def test_a_report_without_numbers_is_nothing(self, more):
        assert shown(io.StringIO(), [line("loading_weights", **more)]) == []

    def test_a_closed_terminal_is_no_error(self):
        class Closed(Terminal):
            def write(self, text: str) -> int:
                raise OSError(5, "Input/output error")

        Console(Closed(), ServeSettings()).status("Ending")
