"""Which files hold a model, and what may be wrong with them."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from batchyard.errors import ModelError
from gpu_worker.models.checkpoint import StoredTensor, find_shards, read_headers, read_tensors


def write(folder, name, **tensors):
    save_file(tensors, folder / name)
    return folder / name


def write_index(folder, weight_map):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_one_file_wins(tmp_path):
    single = write(tmp_path, "model.safetensors", a=torch.zeros(1))
    write(tmp_path, "other.safetensors", a=torch.zeros(1))
    assert find_shards(tmp_path) == [single]


def test_index_names_the_shards(tmp_path):
    first = write(tmp_path, "model-1.safetensors", a=torch.zeros(1))
    second = write(tmp_path, "model-2.safetensors", b=torch.zeros(1), c=torch.zeros(1))
    write(tmp_path, "adapter.safetensors", d=torch.zeros(1))
    write_index(tmp_path, {"c": second.name, "a": first.name, "b": second.name})
    assert find_shards(tmp_path) == [first, second]


def test_without_an_index_every_file_is_a_shard(tmp_path):
    second = write(tmp_path, "model-2.safetensors", b=torch.zeros(1))
    first = write(tmp_path, "model-1.safetensors", a=torch.zeros(1))
    write(tmp_path, "consolidated.safetensors", a=torch.zeros(1))
    assert find_shards(tmp_path) == [first, second]


def test_headers_and_tensors(tmp_path):
    file = write(tmp_path, "model.safetensors", a=torch.arange(6.0).view(2, 3), b=torch.ones(4).bfloat16())
    stored = read_headers([file])
    assert stored == {"a": StoredTensor(file, (2, 3), "F32"), "b": StoredTensor(file, (4,), "BF16")}
    assert stored["a"].num_bytes == 24
    assert stored["b"].num_bytes == 8
    tensors = dict(read_tensors([file], {"a"}))
    assert tensors.keys() == {"a"}
    assert tensors["a"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_missing_shard(tmp_path):
    shard = write(tmp_path, "model-1.safetensors", a=torch.zeros(1))
    write_index(tmp_path, {"a": shard.name, "b": "model-2.safetensors"})
    with pytest.raises(ModelError, match=r"model-2\.safetensors is missing"):
        find_shards(tmp_path)


@pytest.mark.parametrize("weight_map", [None, ["a"], {"a": 1}])
def test_damaged_index(weight_map, tmp_path):
    write_index(tmp_path, weight_map)
    with pytest.raises(ModelError, match="weight_map must map tensor names to file names"):
        find_shards(tmp_path)


def test_no_weights(tmp_path):
    with pytest.raises(ModelError, match=r"has no \*\.safetensors files"):
        find_shards(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ModelError, match="pickled weights only; convert them to safetensors"):
        find_shards(tmp_path)


@pytest.mark.parametrize("kept", [0, 5, 60, -1])
def test_truncated_file(kept, tmp_path):
    file = write(tmp_path, "model.safetensors", a=torch.zeros(100), b=torch.zeros(100))
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ModelError, match=f"{re.escape(str(file))} is truncated or damaged") as raised:
        read_headers([file])
    assert "\n" not in str(raised.value)


def test_git_lfs_pointer(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 123\n")
    with pytest.raises(ModelError, match="only a Git LFS pointer; run `git lfs pull`"):
        read_headers([file])


def test_unreadable_file(tmp_path):
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(ModelError, match="cannot be read"):
        read_headers([tmp_path / "model.safetensors"])


def test_tensor_in_two_files(tmp_path):
    files = [write(tmp_path, f"{i}.safetensors", a=torch.zeros(1)) for i in range(2)]
    with pytest.raises(ModelError, match=r"1\.safetensors: a is also in 0\.safetensors"):
        read_headers(files)
