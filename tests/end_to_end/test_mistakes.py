"""What a user gets wrong before the first token: one line that says so, and an exit code."""

import os
import shutil
import socket
import subprocess
import sys

import pytest

from batchyard.demo import MODEL_DIR
from batchyard.settings import variable_of
from tests.certificates import YESTERDAY, Authority, internal
from tests.end_to_end.stack import free_port


def batchyard(*arguments, **env):
    return subprocess.run(
        [sys.executable, "-m", "batchyard.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        # Nothing here is to meet a worker that somebody runs on the usual port.
        env={**os.environ, "BATCHYARD_LISTEN": f"127.0.0.1:{free_port()}", **env},
        check=False,
    )


def ports_for(command):
    return [] if command == "worker" else ["--port", str(free_port()), "--grpc-port", str(free_port())]


def one_line(run):
    """The message of a run that must have failed as a user's mistake."""
    assert run.returncode == 2, run.stderr
    lines = [line for line in run.stderr.splitlines() if line.startswith("batchyard: ")]
    assert len(lines) == 1, run.stderr
    assert "Traceback" not in run.stderr
    return lines[0]


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(MODEL_DIR, folder)
    return folder


@pytest.mark.parametrize("command", ["worker", "gateway", "serve"])
def test_a_folder_that_is_not_there(command):
    run = batchyard(command, "--model", "./nowhere", *ports_for(command))
    assert "nowhere" in one_line(run)


def test_a_folder_that_is_no_model(tmp_path):
    assert "config.json" in one_line(batchyard("worker", "--model", str(tmp_path)))


@pytest.mark.parametrize("command", ["worker", "serve"])
def test_truncated_weights(command, model):
    weights = model / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    run = batchyard(command, "--model", str(model), *ports_for(command))
    assert "model.safetensors" in one_line(run)


def test_weights_that_are_pickled(model):
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    run = batchyard("worker", "--model", str(model))
    assert "pickled weights only; convert them to safetensors" in one_line(run)


def test_certificates_between_processes(tmp_path):
    settings = internal(Authority(tmp_path).issue(ends=YESTERDAY))
    run = batchyard("scheduler", **{variable_of(name): path for name, path in settings.items()})
    assert "internal_ssl_certfile: " in one_line(run)
    assert "certificate has expired" in one_line(run)


def test_certificates_of_the_apis(tmp_path):
    files = Authority(tmp_path).issue()
    files.keyfile.write_text("not a key")
    flags = ["--ssl-certfile", str(files.certfile), "--ssl-keyfile", str(files.keyfile)]
    run = batchyard("serve", *flags, *ports_for("serve"))
    assert f"ssl_keyfile: {files.keyfile} holds no private key in PEM form" in one_line(run)


def test_an_architecture_we_do_not_know(model):
    config = model / "config.json"
    config.write_text(config.read_text().replace("LlamaForCausalLM", "MambaForCausalLM"))
    assert "MambaForCausalLM" in one_line(batchyard("worker", "--model", str(model)))


@pytest.mark.parametrize("command", ["serve", "gateway"])
def test_a_port_in_use(command):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert port in one_line(batchyard(command, "--port", port))


@pytest.mark.parametrize(
    ("arguments", "env", "says"),
    [
        (["--max-model-length", "5"], {}, "--max-model-length"),
        (["--max-model-len", "many"], {}, "max-model-len"),
        (["--max-model-len", "9999"], {}, "9999"),
        (["--dtype", "int8"], {}, "dtype"),
        ([], {"BATCHYARD_MODLE": "x"}, "BATCHYARD_MODLE"),
        (["--max-num-seqs", "512", "--max-num-batched-tokens", "64"], {}, "max_num_batched_tokens"),
        (["--num-gpu-blocks", "2"], {}, "num-gpu-blocks"),
    ],
)
def test_settings(arguments, env, says):
    assert says in one_line(batchyard("worker", *arguments, **env))
