import io

import pytest
from rich.console import Console

from batchyard.top.frame import frame
from tests.batchyard.top.server import REQUEST, STATE


def lines(state, width=120, height=30, trouble=None):
    out = io.StringIO()
    Console(file=out, width=width, height=height).print(frame(state, width, height, trouble))
    return out.getvalue().splitlines()


def test_all_of_it():
    shown = lines(STATE)
    text = "\n".join(shown)
    assert shown[0].startswith("Batchyard demo  ready")
    assert shown[1].split() == ["tokens/s", "1,234", "running", "3", "waiting", "2"]
    assert "first token p50 42 ms p99 1.23 s" in shown[2]
    assert "between tokens p50 - p99 -" in shown[2]
    assert shown[3].rstrip().endswith("▄█")
    (worker,) = [line for line in shown if line.startswith("worker-0")]
    assert "████████▒▒▒▒····" in worker
    assert worker.split()[3:] == ["50%", "3/8", "3", "rows,", "5", "tokens", "4.5", "ms", "1,234"]
    assert "alice" in text
    (request,) = [line for line in shown if "chat-1" in line]
    assert request.rstrip().endswith("qqqqqq" + 18 * "d")


@pytest.mark.parametrize("width", [20, 40, 80, 109, 110, 200])
@pytest.mark.parametrize("height", [3, 10, 24, 60])
def test_it_stays_within_the_screen(width, height):
    state = STATE | {"requests": [REQUEST | {"id": f"{'x' * 90}{n}", "tenant": "t" * 64} for n in range(100)]}
    shown = lines(state, width, height)
    assert max(map(len, shown)) <= width
    # What is above the requests is never left out: Live cuts it off where it does not fit.
    assert len(shown) <= max(height, 14)


def test_what_is_told_to_an_ordinary_key():
    few = {name: value for name, value in STATE.items() if name not in ("workers", "tenants", "history")}
    shown = lines(few | {"key": "alice", "totals": {"running": 1, "waiting": 0}})
    assert "key alice" in shown[0]
    assert shown[1].split() == ["running", "1", "waiting", "0"]
    assert any("chat-1" in line for line in shown)


def test_trouble():
    assert "not ready: No worker" in lines(STATE | {"ready": False, "reason": "No worker"})[0]
    assert "connection lost" in lines(STATE, trouble="connection lost 3 s ago")[0]
    assert "requests of 1 of 3 gateways" in lines(STATE | {"gateways": {"heard": 1, "of": 3}})[0]


def test_markup_in_a_name_is_no_markup():
    worker = STATE["workers"][0] | {"id": "[bold red]w[/]", "state": "[blink]"}
    assert any("[bold red]w[/]" in line for line in lines(STATE | {"workers": [worker]}))


def test_a_worker_that_never_connected():
    nothing = {"total": 0, "held": 0, "cached": 0, "free": 0}
    worker = STATE["workers"][0] | {"state": "away", "blocks": nothing, "step": None}
    (line,) = [line for line in lines(STATE | {"workers": [worker]}) if line.startswith("worker-0")]
    assert line.split()[1:4] == ["away", "················", "-"]
