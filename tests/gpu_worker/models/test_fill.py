"""Checkpoint tensors and parameters: who goes where, and what does not fit."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from batchyard.errors import ModelError
from gpu_worker.models import load_config
from gpu_worker.models.fill import fill_from_checkpoint, fill_randomly
from gpu_worker.models.weights import allocate_weights, checkpoint_names

CPU = torch.device("cpu")
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
K_PROJ = "model.layers.1.self_attn.k_proj.weight"


def silent(done, total):
    pass


def parameters_of(folder, dtype=torch.float32):
    config = load_config(folder)
    weights = allocate_weights(config, dtype, CPU)
    return weights, checkpoint_names(weights, config)


def rewrite(folder, change):
    """Apply `change` to the checkpoint's dict of tensors."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    file.unlink()
    save_file(tensors, file)
    return tensors


def tie(folder):
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"tie_word_embeddings": false', '"tie_word_embeddings": true'))
    assert load_config(folder).tie_word_embeddings


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_tensor_arrives_in_its_place(dtype, llama_folder):
    weights, parameters = parameters_of(llama_folder, dtype)
    fill_from_checkpoint(parameters, llama_folder, silent)
    tensors = load_file(llama_folder / "model.safetensors")
    assert parameters.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(parameters[name], tensor.to(dtype)), name
    prefix = "model.layers.2.mlp."
    gate_up = torch.cat([tensors[f"{prefix}gate_proj.weight"], tensors[f"{prefix}up_proj.weight"]])
    assert torch.equal(weights.layers[2].gate_up.weight, gate_up.to(dtype))


def test_progress_ends_at_the_size_of_the_tensors(llama_folder):
    _, parameters = parameters_of(llama_folder)
    calls = []
    fill_from_checkpoint(parameters, llama_folder, lambda done, total: calls.append((done, total)))
    size = sum(parameter.nbytes for parameter in parameters.values())
    assert len(calls) == len(parameters)
    assert calls == sorted(calls)
    assert calls[-1] == (size, size)


def test_rotary_frequencies_are_ignored(llama_folder):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(llama_folder, lambda tensors: tensors.update({name: torch.ones(8)}))
    fill_from_checkpoint(parameters_of(llama_folder)[1], llama_folder, silent)


@pytest.mark.parametrize("kept", [(EMBEDDING,), (HEAD,), (EMBEDDING, HEAD)])
def test_tied_checkpoint_holds_either_or_both(kept, llama_folder):
    tie(llama_folder)

    def change(tensors):
        embedding = tensors.pop(EMBEDDING)
        del tensors[HEAD]
        tensors.update({name: embedding.clone() for name in kept})

    tensors = rewrite(llama_folder, change)
    weights, parameters = parameters_of(llama_folder)
    calls = []
    fill_from_checkpoint(parameters, llama_folder, lambda done, total: calls.append((done, total)))
    assert weights.lm_head is weights.embedding
    assert torch.equal(weights.embedding, tensors[kept[0]])
    assert calls[-1][0] == calls[-1][1]


BAD_TENSORS = {
    "missing": (
        lambda tensors: tensors.pop(K_PROJ),
        rf"has no tensor {K_PROJ}; is config\.json of this model\?",
    ),
    "several missing": (
        lambda tensors: [tensors.pop(name) for name in sorted(tensors) if "layers.2" in name],
        r"has no tensor model\.layers\.2\.\S+ and 8 others",
    ),
    "unknown": (
        lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}),
        r"model\.safetensors: the model has no place for tensor model\.layers\.0\.self_attn\.q_proj\.bias",
    ),
    "wrong shape": (
        lambda tensors: tensors.update({K_PROJ: torch.zeros(64, 64)}),
        rf"model\.safetensors: {K_PROJ} has shape \[64, 64\], but config\.json asks for \[32, 64\]",
    ),
    "quantized": (
        lambda tensors: tensors.update({K_PROJ: torch.zeros(32, 64, dtype=torch.int8)}),
        rf"{K_PROJ} is stored as I8; quantized weights are not supported",
    ),
}


@pytest.mark.parametrize(("change", "message"), BAD_TENSORS.values(), ids=BAD_TENSORS.keys())
def test_bad_tensor_is_named(change, message, llama_folder):
    rewrite(llama_folder, change)
    _, parameters = parameters_of(llama_folder)
    with pytest.raises(ModelError, match=message) as raised:
        fill_from_checkpoint(parameters, llama_folder, silent)
    assert str(llama_folder) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_head_that_is_not_the_embedding_it_should_be_tied_to(llama_folder):
    tie(llama_folder)
    with pytest.raises(ModelError, match='set "tie_word_embeddings": false'):
        fill_from_checkpoint(parameters_of(llama_folder)[1], llama_folder, silent)


def test_random_values_follow_from_the_seed(llama_folder):
    _, parameters = parameters_of(llama_folder)
    calls = []
    fill_randomly(parameters, CPU, 7, lambda done, total: calls.append((done, total)))
    first = {name: parameter.clone() for name, parameter in parameters.items()}
    assert calls[-1] == (sum(p.nbytes for p in parameters.values()),) * 2
    assert all((first[name] == 1).all() for name in first if name.endswith("norm.weight"))
    assert first[K_PROJ].std() == pytest.approx(0.02, rel=0.1)

    fill_randomly(parameters, CPU, 7, silent)
    assert all(torch.equal(parameters[name], first[name]) for name in first)
    fill_randomly(parameters, CPU, 8, silent)
    assert not torch.equal(parameters[K_PROJ], first[K_PROJ])
