"""A real Prometheus over a real `batchyard serve`, as deploy/ has it but for addresses and intervals."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import yaml

from tests.end_to_end.stack import free_port

DEPLOY = Path(__file__).parents[2] / "deploy"


def installed() -> bool:
    """Whether Prometheus and promtool are there: Debian's package `prometheus`."""
    return all(shutil.which(name) for name in ("prometheus", "promtool"))


def free_ports(count: int) -> int:
    """The first of so many in a row."""
    while True:
        first = free_port()
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(socket_at(port))
            except OSError:
                continue
            return first


@contextlib.contextmanager
def socket_at(port: int):
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", port))
        yield


class Serve:
    """`batchyard serve` with metrics: of gateway, scheduler and worker, by what compose calls them."""

    def __init__(self, *more: str) -> None:
        self.port = free_port()
        metrics = free_ports(2)
        self.addresses = {
            "gateway:8000": f"127.0.0.1:{self.port}",
            "scheduler:9100": f"127.0.0.1:{metrics}",
            "worker": f"127.0.0.1:{metrics + 1}",
        }
        options = ["--port", str(self.port), "--grpc-port", "0", "--metrics-port", str(metrics)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "batchyard.cli", "serve", "--device", "cpu", *options, *more],
            stdout=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def __enter__(self) -> "Serve":
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/ready", timeout=5):
                return self
            time.sleep(0.1)
        self.__exit__()
        raise AssertionError("it did not become ready")

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(timeout=30)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def exposition(self, name: str) -> str:
        """What Prometheus reads of one process."""
        with urllib.request.urlopen(f"http://{self.addresses[name]}/metrics", timeout=20) as reply:
            return reply.read().decode()

    def complete(self, prompt: str, max_tokens: int) -> None:
        """One answer."""
        body = {"model": "demo", "prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True}
        request = urllib.request.Request(
            f"{self.url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        urllib.request.urlopen(request, timeout=60).read()


class Prometheus:
    """With the configuration and the rules of deploy/."""

    def __init__(self, folder: Path, addresses: dict[str, str]) -> None:
        self._url = f"http://127.0.0.1:{free_port()}"
        config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        for job in config["scrape_configs"]:
            named = [target for group in job.get("static_configs", []) for target in group["targets"]]
            named += [name for found in job.pop("dns_sd_configs", []) for name in found["names"]]
            job["static_configs"] = [{"targets": [addresses[name] for name in named if name in addresses]}]
        rules = yaml.safe_load((DEPLOY / "alerts.yml").read_text())
        for group in rules["groups"]:
            group.pop("interval", None)
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        (folder / "alerts.yml").write_text(yaml.safe_dump(rules))
        self._process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address={self._url.removeprefix('http://')}",
                "--log.level=warn",
            ],
            stdin=subprocess.DEVNULL,
        )

    def __enter__(self) -> "Prometheus":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def query(self, expr: str) -> list[float]:
        """The samples' values now; none while it is not up yet."""
        with contextlib.suppress(ConnectionRefusedError, urllib.error.URLError):
            return [float(sample["value"][1]) for sample in self._get("query", query=expr)["result"]]
        return []

    def rules(self) -> list[dict]:
        """All rules, with how their evaluation went."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def targets(self) -> dict[tuple[str, str], dict]:
        """By job and address."""
        active = self._get("targets")["activeTargets"]
        return {(each["labels"]["job"], each["labels"]["instance"]): each for each in active}

    def _get(self, what: str, **parameters: str):
        url = f"{self._url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=20) as reply:
            return json.load(reply)["data"]
