"""load_model from end to end, and the choice of dtype."""

import json

import pytest
import torch
from transformers import LlamaConfig

from batchyard.errors import ConfigError, ModelError
from gpu_worker.models import load_config, resolve_dtype

PROMPT = [5, 17, 101, 33, 250]


def logits_of(model, paged):
    return model.logits(paged(model, [PROMPT], max_tokens=0).hidden({0: len(PROMPT)}))


@pytest.mark.parametrize("with_index", [True, False])
def test_shards_load_like_one_file(with_index, saved_llama, load, paged, tmp_path):
    folder, reference = saved_llama
    reference.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    if not with_index:
        (tmp_path / "model.safetensors.index.json").unlink()
    assert torch.equal(logits_of(load(tmp_path), paged), logits_of(load(folder), paged))


def test_dummy_needs_the_configuration_alone(llama_folder, load, paged):
    (llama_folder / "model.safetensors").unlink()
    first, second = (load(llama_folder, load_format="dummy", seed=3) for _ in range(2))
    assert torch.equal(logits_of(first, paged), logits_of(second, paged))
    other = load(llama_folder, load_format="dummy", seed=4)
    assert not torch.equal(logits_of(first, paged), logits_of(other, paged))


def test_model_tells_what_it_is(llama_folder, load):
    model = load(llama_folder, dtype=torch.bfloat16)
    assert model.config == load_config(llama_folder)
    assert model.dtype == torch.bfloat16
    assert model.device == torch.device("cpu")


def test_longer_than_the_model_supports(llama_folder, load):
    load(llama_folder, max_model_len=256)
    with pytest.raises(ConfigError, match="max_model_len 257 is more than the 256 tokens"):
        load(llama_folder, max_model_len=257)


def test_weights_that_do_not_fit(llama_folder, load):
    path = llama_folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "vocab_size": 2**45}))
    with pytest.raises(ModelError, match=r"weights in torch\.float32 do not fit in the memory of cpu"):
        load(llama_folder)


def test_dtype(llama_folder, make_model):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    config = load_config(llama_folder)
    assert config.dtype == torch.float32
    assert resolve_dtype(config, "auto", gpu) == torch.float32
    assert resolve_dtype(config, "bfloat16", cpu) == torch.bfloat16
    assert resolve_dtype(config, "half", gpu) == torch.float16
    with pytest.raises(
        ConfigError, match="dtype must be one of auto, float32, float16, bfloat16, not 'int8'"
    ):
        resolve_dtype(config, "int8", cpu)

    folder, _ = make_model(LlamaConfig, dtype=torch.bfloat16)
    config = load_config(folder)
    assert resolve_dtype(config, "auto", gpu) == torch.bfloat16
    assert resolve_dtype(config, "auto", cpu) == torch.float32
