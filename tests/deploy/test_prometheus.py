"""Prometheus itself reads every process, and finds all that the dashboard and the alerts ask for."""

import itertools
import math
import re
import subprocess
import threading
import time

import pytest
import yaml

from deploy.grafana.dashboard import ROWS
from tests.deploy.prometheus import DEPLOY, Prometheus, Serve, installed

pytestmark = pytest.mark.skipif(not installed(), reason="needs Debian's package prometheus")

STREAMS = 8
DEADLINE_S = 40


@pytest.fixture(scope="module")
def served():
    """A busy server: more streams than rows, and prompts that push each other out of a small cache."""
    options = ["--max-num-seqs", "4", "--num-gpu-blocks", "96", "--max-model-len", "256"]
    with Serve(*options, "--host-cache-gb", "0.02") as serve:
        over = threading.Event()
        numbers = itertools.count()

        def stream():
            while not over.is_set():
                serve.complete(f"{next(numbers)} " + "import os " * 40, 40)

        threads = [threading.Thread(target=stream) for _ in range(STREAMS)]
        for thread in threads:
            thread.start()
        yield serve
        over.set()
        for thread in threads:
            thread.join()


@pytest.fixture(scope="module")
def prometheus(served, tmp_path_factory):
    with Prometheus(tmp_path_factory.mktemp("prometheus"), served.addresses) as prometheus:
        yield prometheus


def until(condition):
    """What is left when `condition` has nothing left, or when time is up."""
    deadline = time.monotonic() + DEADLINE_S
    while (left := condition()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


def alert_rules():
    groups = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_every_process_is_read_and_every_panel_has_data(served, prometheus):
    exprs = {expr for row in ROWS.values() for panel in row for expr in panel.queries.values()}
    # What happens rarely: of nothing, a percentile is no number.
    rare = {expr for expr in exprs if "move_latency" in expr}
    unanswered = set(exprs)

    def look():
        for expr in list(unanswered):
            values = prometheus.query(expr.replace("$__rate_interval", "10s"))
            if values and (expr in rare or not all(map(math.isnan, values))):
                unanswered.discard(expr)
        return unanswered

    assert not until(look)
    targets = prometheus.targets()
    assert {address for _, address in targets} == set(served.addresses.values())
    assert {job for job, _ in targets} == {"gateway", "scheduler", "worker", "cpu"}
    assert {target["health"] for target in targets.values()} == {"up"}


# No mirror here without Redis: tests/scheduler/test_main.py has its metrics.
ELSEWHERE = {"batchyard_mirror_lag_seconds"}


def test_every_alert_asks_for_what_is_there(prometheus):
    selectors = {
        selector
        for rule in alert_rules()
        for selector in re.findall(r"batchyard[:\w]+(?:\{[^}]*\})?", rule["expr"])
    } - ELSEWHERE
    assert len(selectors) > 15

    def look():
        return {each for each in selectors if not prometheus.query(f"last_over_time({each}[1m])")}

    assert not until(look)
    assert {(rule["name"], rule["health"]) for rule in prometheus.rules()} == {
        (rule.get("alert") or rule["record"], "ok") for rule in alert_rules()
    }


@pytest.mark.parametrize("name", ["gateway:8000", "scheduler:9100", "worker"])
def test_promtool_has_nothing_to_say_about_our_names(served, name):
    lines = served.exposition(name).splitlines()
    # vLLM's are as vLLM chose them.
    ours = "".join(f"{line}\n" for line in lines if not re.match(r"(# \w+ )?vllm:", line))
    assert "# TYPE batchyard_" in ours
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=ours, text=True, capture_output=True, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_the_rules_do_what_their_tests_say():
    for command in (["check", "config", "prometheus.yml"], ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run(["promtool", *command], cwd=DEPLOY, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_and_says_what_to_do():
    page = (DEPLOY.parent / "docs" / "metrics.md").read_text()
    titles = re.findall(r"^#+ (.*)$", page, re.M)
    anchors = {title.strip().lower().replace(" ", "-") for title in titles}
    tests = (DEPLOY / "alerts_test.yml").read_text()
    for rule in alert_rules():
        if name := rule.get("alert"):
            notes = rule["annotations"]
            assert len(notes["summary"]) > 10
            assert len(notes["description"]) > 40
            assert notes["runbook"].removeprefix("docs/metrics.md#") in anchors
            assert rule["labels"]["severity"] in ("warning", "critical")
            assert any(re.fullmatch(pattern, name) for pattern in _named(tests))


def _named(tests):
    return re.findall(r'alertname(?:=~?"|: )([\w.*]+)', tests)
