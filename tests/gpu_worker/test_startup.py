"""From settings to a runner: what is chosen, what is said, what is refused."""

import shutil

import pytest
import torch

from batchyard.config import WorkerSettings
from batchyard.errors import ConfigError, ModelError
from gpu_worker import startup
from gpu_worker.fingerprint import model_fingerprint
from gpu_worker.startup import resolve_device, start_runner


def settings_for(folder, **changes):
    return WorkerSettings(**{"model": str(folder), "device": "cpu", "max_num_seqs": 3, **changes})


def start(folder, **changes):
    return start_runner(settings_for(folder, **changes), stop=lambda: None)


def test_a_worker_describes_itself(tiny_llama):
    folder, _ = tiny_llama
    runner, described, host_cache = start(folder, max_model_len=100, block_size=8, worker_id="me")
    assert (described.worker_id, described.device, described.dtype) == ("me", "cpu", "float32")
    assert (described.max_rows, described.max_batched_tokens, described.vocab_size) == (3, 8192, 300)
    assert (described.max_model_len, described.block_size) == (100, 8)
    assert described.num_blocks == 3 * 13  # what three rows can hold
    assert described.model == model_fingerprint(folder, "auto", 0, torch.float32)
    assert runner.rows.num_active == 0
    assert (described.num_host_blocks, host_cache) == (0, None)
    again = start(folder)[1]
    assert again.max_model_len == 256  # the model's own
    assert again.epoch != described.epoch


def test_more_than_the_model_can_is_refused(tiny_llama):
    with pytest.raises(ConfigError, match="--max-model-len 257 is more than the 256 tokens"):
        start(tiny_llama[0], max_model_len=257)


def test_a_cache_for_less_than_one_sequence_is_refused(tiny_llama):
    with pytest.raises(ConfigError, match=r"--max-model-len 256 needs .* or raise --cpu-kv-cache-gb"):
        start(tiny_llama[0], cpu_kv_cache_gb=1e-6)


def test_a_bad_folder_is_refused(tmp_path):
    with pytest.raises(ModelError):
        start(tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="--device cuda: no CUDA device"):
        resolve_device("cuda")
    assert resolve_device("auto") == torch.device("cpu")


def test_loading_reports_and_can_be_stopped(tiny_llama, monkeypatch):
    events = []

    class Log:
        def info(self, event, **values):
            events.append((event, values))

    monkeypatch.setattr(startup, "log", Log())
    start(tiny_llama[0])
    total = events[-1][1]["total"]
    assert total == sum(p.nbytes for p in tiny_llama[1].parameters())
    assert events[-1] == ("loading_weights", {"done": total, "total": total})
    assert len(events) < 5

    def stop():
        raise InterruptedError

    with pytest.raises(InterruptedError):
        start_runner(settings_for(tiny_llama[0]), stop)


def test_dummy_weights_need_no_file(tiny_llama, tmp_path):
    shutil.copy(tiny_llama[0] / "config.json", tmp_path)
    names = [start(tmp_path, load_format="dummy", seed=seed)[1].model for seed in (0, 0, 1)]
    assert names[0] == names[1] != names[2]


def test_fingerprints_tell_weights_and_dtypes_apart(tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama[0], tmp_path / "same-name")
    original = model_fingerprint(folder, "auto", 0, torch.float32)
    assert original.startswith("same-name-")
    assert original.endswith("-float32")
    assert model_fingerprint(folder, "auto", 5, torch.float32) == original
    assert model_fingerprint(folder, "auto", 0, torch.bfloat16) != original
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert model_fingerprint(folder, "auto", 0, torch.float32) != original
