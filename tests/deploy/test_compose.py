"""The compose files say what the processes understand: settings, ports and addresses that fit together."""

import re
from pathlib import Path

import pytest
import yaml

from batchyard.cli import COMMANDS
from batchyard.settings import load

ROOT = Path(__file__).parents[2]
OURS = ("gateway", "scheduler", "worker")


def read(name):
    return yaml.safe_load((ROOT / name).read_text())


def defaults(environment):
    """As compose fills in `${NAME:-default}` where nothing is set."""
    return {name: re.sub(r"\$\{\w+:-(.*?)\}", r"\1", value) for name, value in environment.items()}


def settings_of(service, *files):
    environment = {}
    for file in files:
        environment |= defaults(read(file)["services"][service].get("environment", {}))
    return load(COMMANDS[service].settings, [], environment)


@pytest.mark.parametrize("service", OURS)
def test_processes_accept_their_environment(service):
    assert read("docker-compose.yml")["services"][service]["command"] == [service]
    assert settings_of(service, "docker-compose.yml").otlp == "http://jaeger:4317"


def test_gpu_override_moves_the_worker_only():
    files = ("docker-compose.yml", "docker-compose.gpu.yml")
    assert settings_of("worker", "docker-compose.yml").device == "cpu"
    assert settings_of("worker", *files).device == "cuda"
    services = read(files[1])["services"]
    assert {services[service]["image"] for service in (*OURS, "standby")} == {"batchyard:gpu"}


def test_one_service_builds_the_image_that_all_share():
    # Compose builds side by side, and two builds that end in the same name fail each other.
    services = read("docker-compose.yml")["services"]
    assert {services[service]["image"] for service in OURS} == {"batchyard:cpu"}
    assert [name for name, service in services.items() if "build" in service] == ["scheduler"]


def test_processes_find_each_other():
    gateway, scheduler, worker = (settings_of(service, "docker-compose.yml") for service in OURS)
    assert gateway.scheduler_address == tuple(
        f"{name}:{scheduler.scheduler_listen.rsplit(':')[-1]}" for name in ("scheduler", "standby")
    )
    assert scheduler.worker_addresses == (f"worker:{worker.listen.rsplit(':')[-1]}",)


def test_the_standby_is_like_the_scheduler():
    services = read("docker-compose.yml")["services"]
    scheduler = {key: value for key, value in services["scheduler"].items() if key != "build"}
    assert services["standby"] == scheduler


def test_prometheus_scrapes_where_metrics_are():
    gateway, scheduler, worker = (settings_of(service, "docker-compose.yml") for service in OURS)
    scraped = {
        target
        for job in read("deploy/prometheus.yml")["scrape_configs"]
        for config in job["static_configs"]
        for target in config["targets"]
    }
    assert scraped == {
        f"gateway:{gateway.port}",
        f"scheduler:{scheduler.metrics_port}",
        f"standby:{scheduler.metrics_port}",
        f"worker:{worker.metrics_port}",
    }


@pytest.mark.parametrize("service", OURS)
def test_health_checks_ask_where_the_process_listens(service):
    address = read("docker-compose.yml")["services"][service]["healthcheck"]["test"][-1]
    settings = settings_of(service, "docker-compose.yml")
    listening = {
        "gateway": lambda: f"http://127.0.0.1:{settings.port}/ready",
        "scheduler": lambda: settings.scheduler_listen.replace("0.0.0.0", "127.0.0.1"),
        "worker": lambda: settings.listen.replace("0.0.0.0", "127.0.0.1"),
    }
    assert address == listening[service]()


def test_only_this_machine_reaches_the_ports_that_are_published():
    services = read("docker-compose.yml")["services"]
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert {name for name, service in services.items() if "ports" in service} == {
        "gateway",
        "jaeger",
        "prometheus",
    }
    assert all(port.startswith(("127.0.0.1:", "${BATCHYARD_HOST:-127.0.0.1}:")) for port in ports)
