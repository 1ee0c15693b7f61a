import os
import sys
from pathlib import Path
from typing import Any

import pytest

from batchyard.config import GatewaySettings, SchedulerSettings, ServeSettings, WorkerSettings
from batchyard.errors import ConfigError
from batchyard.plan import Machine, ProcessSpec, plan, this_machine
from batchyard.settings import load

CPU = Machine(gpus=(), cores=8)
COMMANDS = {"worker": WorkerSettings, "scheduler": SchedulerSettings, "gateway": GatewaySettings}


def planned(
    folder: Path, machine: Machine = CPU, environ: dict[str, str] | None = None, **settings: Any
) -> dict[str, ProcessSpec]:
    specs = plan(ServeSettings(**settings), folder, machine, environ or {})
    return {spec.name: spec for spec in specs}


def loaded(spec: ProcessSpec) -> Any:
    """The settings that the process gets."""
    return load(COMMANDS[spec.role], [], spec.env)


def test_one_of_each(tmp_path):
    specs = planned(tmp_path)
    assert list(specs) == ["worker-0", "scheduler", "gateway"]
    for spec in specs.values():
        assert spec.command == (sys.executable, "-P", "-m", "batchyard.lifeline", spec.role)
    worker, scheduler, gateway = map(loaded, specs.values())
    assert scheduler.worker_addresses == (worker.listen,) == (f"unix:{tmp_path}/worker-0.sock",)
    assert scheduler.scheduler_listen == f"unix:{tmp_path}/scheduler.sock"
    assert gateway.scheduler_address == worker.scheduler_address == (scheduler.scheduler_listen,)
    assert not gateway.share_port
    assert gateway.gateway_folder is None
    assert "PROMETHEUS_MULTIPROC_DIR" not in specs["gateway"].env
    assert specs["worker-0"].env["OMP_NUM_THREADS"] == "7"  # of 8: one is left to the others
    assert "OMP_NUM_THREADS" not in specs["gateway"].env


def test_settings_reach_the_processes_they_are_for(tmp_path):
    specs = planned(
        tmp_path,
        model="/m",
        served_model_name="m",
        seed=3,
        redis="redis://r",
        port=9,
        api_key="hush",
        api_keys="keys.json",
        gateways=2,
        otlp="http://o",
    )
    worker, scheduler, gateway, other = map(loaded, specs.values())
    assert gateway == other
    assert (gateway.redis, gateway.api_keys, gateway.gateway_count) == ("redis://r", "keys.json", 2)
    assert (worker.model, worker.seed, worker.otlp) == ("/m", 3, "http://o")
    assert (scheduler.redis, scheduler.otlp) == ("redis://r", "http://o")
    assert (gateway.model, gateway.served_model_name, gateway.port) == ("/m", "m", 9)
    assert [name for name, spec in specs.items() if "hush" in spec.env.values()] == ["gateway-0", "gateway-1"]


def test_the_environment_does_not_apply_twice(tmp_path):
    """`--port 8000` over BATCHYARD_PORT=9 means 8000, though that is the default and so not passed on."""
    environ = {"BATCHYARD_PORT": "9", "BATCHYARD_CONFIG": "/none.yaml", "PATH": "/bin"}
    gateway = planned(tmp_path, environ=environ, port=8000)["gateway"]
    assert gateway.env["PATH"] == "/bin"
    assert loaded(gateway).port == 8000


@pytest.mark.parametrize(("level", "theirs"), [("debug", "debug"), ("info", "info"), ("error", "info")])
def test_logs_come_as_json_and_with_progress(tmp_path, level, theirs):
    for spec in planned(tmp_path, log_level=level, log_format="console").values():
        assert (loaded(spec).log_format, loaded(spec).log_level) == ("json", theirs)


def test_gateways_share_port_and_metrics(tmp_path):
    specs = planned(tmp_path, gateways=2)
    assert list(specs) == ["worker-0", "scheduler", "gateway-0", "gateway-1"]
    folders = {specs[name].env["PROMETHEUS_MULTIPROC_DIR"] for name in ("gateway-0", "gateway-1")}
    (folder,) = folders
    assert os.listdir(folder) == []
    assert loaded(specs["gateway-1"]).share_port
    assert loaded(specs["gateway-1"]).gateway_folder == str(tmp_path)
    assert "PROMETHEUS_MULTIPROC_DIR" not in specs["scheduler"].env


def test_gateways_and_workers_know_every_scheduler(tmp_path):
    specs = planned(tmp_path, schedulers=2, redis="redis://r", metrics_port=9100, workers=2)
    assert list(specs) == ["worker-0", "worker-1", "scheduler-0", "scheduler-1", "gateway"]
    first, second = loaded(specs["scheduler-0"]), loaded(specs["scheduler-1"])
    assert first.worker_addresses == second.worker_addresses
    for name in ("gateway", "worker-0", "worker-1"):
        assert loaded(specs[name]).scheduler_address == (first.scheduler_listen, second.scheduler_listen)
    assert (first.metrics_port, second.metrics_port) == (9100, 9103)


def test_standbys_need_redis():
    with pytest.raises(ConfigError, match="standbys need --redis"):
        load(ServeSettings, ["--schedulers", "2"], {})


def test_metrics_ports_differ(tmp_path):
    specs = planned(tmp_path, workers=2, metrics_port=9100)
    assert [loaded(specs[name]).metrics_port for name in ("scheduler", "worker-0", "worker-1")] == [
        9100,
        9101,
        9102,
    ]
    assert loaded(planned(tmp_path)["worker-0"]).metrics_port == 0


class TestShares:
    def names(self, specs: dict[str, ProcessSpec], variable: str) -> list[str | None]:
        return [spec.env.get(variable) for spec in specs.values() if spec.role == "worker"]

    def test_gpus(self, tmp_path):
        specs = planned(tmp_path, Machine(("4", "6", "7"), 8), {"CUDA_VISIBLE_DEVICES": "4,6,7"}, workers=2)
        assert self.names(specs, "CUDA_VISIBLE_DEVICES") == ["4", "6"]
        assert self.names(specs, "OMP_NUM_THREADS") == [None, None]
        assert [loaded(specs[f"worker-{n}"]).worker_id for n in range(2)] == ["worker-0", "worker-1"]

    def test_too_few_gpus(self, tmp_path):
        with pytest.raises(ConfigError, match=r"--workers 2: .*there are 1; .*--device cpu"):
            planned(tmp_path, Machine(("0",), 8), workers=2)

    def test_one_worker_has_all(self, tmp_path):
        specs = planned(tmp_path, Machine(("0", "1"), 8))
        assert self.names(specs, "CUDA_VISIBLE_DEVICES") == [None]
        assert self.names(specs, "OMP_NUM_THREADS") == [None]

    @pytest.mark.parametrize("machine", [Machine(("0",), 8), CPU])
    def test_threads(self, tmp_path, machine):
        specs = planned(tmp_path, machine, workers=3, device="cpu")
        assert self.names(specs, "OMP_NUM_THREADS") == ["2"] * 3
        assert self.names(specs, "CUDA_VISIBLE_DEVICES") == [None] * 3

    def test_at_least_one_thread(self, tmp_path):
        assert self.names(planned(tmp_path, workers=9), "OMP_NUM_THREADS") == ["1"] * 9

    def test_the_users_threads(self, tmp_path):
        specs = planned(tmp_path, environ={"OMP_NUM_THREADS": "5"}, workers=2)
        assert self.names(specs, "OMP_NUM_THREADS") == ["5", "5"]


class TestThisMachine:
    def test_visible_devices(self):
        def gpus(visible: str) -> list[str]:
            return list(this_machine({"CUDA_VISIBLE_DEVICES": visible}).gpus)

        assert gpus("2, GPU-ab") == ["2", "GPU-ab"]
        assert gpus("") == gpus("-1") == []

    def test_nvidia_smi(self, tmp_path, monkeypatch):
        tool = tmp_path / "nvidia-smi"
        tool.write_text(
            "#!/bin/sh\necho 'GPU 0: NVIDIA H200 (UUID: GPU-a)'\necho 'GPU 1: NVIDIA H200 (UUID: GPU-b)'\n"
        )
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        assert list(this_machine({}).gpus) == ["0", "1"]

    def test_none(self, monkeypatch):
        monkeypatch.setenv("PATH", "/nowhere")
        assert list(this_machine({}).gpus) == []
        assert this_machine({}).cores >= 1
