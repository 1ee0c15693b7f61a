"""The compose files say what the processes understand: settings, ports and addresses that fit together."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from batchyard.cli import COMMANDS
from batchyard.errors import ConfigError
from batchyard.settings import load
from batchyard.tls import api_tls, internal_tls
from gpu_worker.registration import advertised

ROOT = Path(__file__).parents[2]
OURS = ("gateway", "scheduler", "worker")
SCHEDULERS = ("scheduler", "standby")


def read(name):
    return yaml.safe_load((ROOT / name).read_text())


def defaults(environment):
    """As compose fills in `${NAME:-default}` where nothing is set."""
    innermost = r"\$\{\w+:-([^${}]*)\}"
    filled = {name: re.sub(innermost, r"\1", value) for name, value in environment.items()}
    return filled if filled == environment else defaults(filled)


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
    schedulers = tuple(f"{name}:{scheduler.scheduler_listen.rsplit(':')[-1]}" for name in SCHEDULERS)
    assert gateway.scheduler_address == worker.scheduler_address == schedulers
    # Workers tell where they are: no name, no address and no published port is in the way of several.
    assert advertised(worker.listen) == ":50052"
    assert (scheduler.worker_addresses, worker.worker_id) == ((), None)
    service = read("docker-compose.yml")["services"]["worker"]
    assert not {"ports", "container_name", "hostname"} & service.keys()


def test_the_standby_is_like_the_scheduler():
    services = read("docker-compose.yml")["services"]
    scheduler = {key: value for key, value in services["scheduler"].items() if key != "build"}
    assert services["standby"] == scheduler
    for file in ("docker-compose.gpu.yml", "deploy/docker-compose.tls.yml"):
        first, standby = (read(file)["services"][name] for name in SCHEDULERS)
        assert standby == {key: value for key, value in first.items() if key != "build"}


def test_prometheus_scrapes_where_metrics_are():
    gateway, scheduler, worker = (settings_of(service, "docker-compose.yml") for service in OURS)
    configs = read("deploy/prometheus.yml")["scrape_configs"]
    fixed = [config for job in configs for config in job.get("static_configs", [])]
    found = [config for job in configs for config in job.get("dns_sd_configs", [])]
    scraped = {target for config in fixed for target in config["targets"]}
    scraped |= {f"{name}:{config['port']}" for config in found for name in config["names"]}
    assert scraped == {
        f"gateway:{gateway.port}",
        f"scheduler:{scheduler.metrics_port}",
        f"standby:{scheduler.metrics_port}",
        f"worker:{worker.metrics_port}",
    }


def test_prometheus_finds_its_rules():
    mounts = dict(
        volume.split(":")[:2] for volume in read("docker-compose.yml")["services"]["prometheus"]["volumes"]
    )
    (rules,) = read("deploy/prometheus.yml")["rule_files"]
    assert mounts[f"./deploy/{rules}"] == f"/etc/prometheus/{rules}"
    assert read(f"deploy/{rules}")["groups"]


def test_metrics_call_the_model_what_the_api_does():
    assert settings_of("scheduler", "docker-compose.yml").served_model_name == "demo"
    assert settings_of("gateway", "docker-compose.yml").model == "demo"


@pytest.mark.parametrize("service", OURS)
def test_health_checks_ask_where_the_process_listens(service):
    address = read("docker-compose.yml")["services"][service]["healthcheck"]["test"][-1]
    settings = settings_of(service, "docker-compose.yml")
    listening = {
        "gateway": lambda: f"http://127.0.0.1:{settings.port}/ready",
        "scheduler": lambda: f"http://127.0.0.1:{settings.metrics_port}/metrics",
        "worker": lambda: settings.listen.replace("0.0.0.0", "127.0.0.1"),
    }
    assert address == listening[service]()


TLS_FILES = ("docker-compose.yml", "deploy/docker-compose.tls.yml")


@pytest.mark.parametrize("service", OURS)
def test_with_tls_each_process_has_the_certificates_that_the_documentation_makes(service, tmp_path):
    settings = settings_of(service, *TLS_FILES)
    assert read(TLS_FILES[1])["services"][service]["volumes"] == ["${CERTS:-./certs}:/certs:ro"]
    commands = re.search(r"^```sh\n(.*?)^```", (ROOT / "docs/security.md").read_text(), re.M | re.S)[1]
    subprocess.run(["bash", "-e"], input=commands, text=True, cwd=tmp_path, capture_output=True, check=True)
    made = {
        name: str(value).replace("/certs", str(tmp_path / "certs"))
        for name, value in settings
        if "ssl" in name and value
    }
    settings = settings.model_copy(update=made)
    member = internal_tls(settings)
    assert member.names() == ["batchyard.internal"] == [member.peer_name]
    if service == "gateway":
        assert set(api_tls(settings).names()) == {"localhost", "127.0.0.1"}
        with pytest.raises(ConfigError, match="unsuitable certificate purpose"):  # to be a member, say
            api_tls(settings.model_copy(update={"ssl_ca_certs": str(tmp_path / "certs/ca.pem")}))
        check = read(TLS_FILES[1])["services"][service]["healthcheck"]["test"][-1]
        assert check == f"https://127.0.0.1:{settings.port}/ready"


def test_only_this_machine_reaches_the_ports_that_are_published():
    services = read("docker-compose.yml")["services"]
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert {name for name, service in services.items() if "ports" in service} == {
        "gateway",
        "grafana",
        "jaeger",
        "prometheus",
    }
    assert all(port.startswith(("127.0.0.1:", "${BATCHYARD_HOST:-127.0.0.1}:")) for port in ports)
