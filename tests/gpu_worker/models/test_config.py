"""config.json of the real models, as published, and everything that may be wrong with one."""

import json
import re

import pytest
import torch
from transformers import AutoConfig

from batchyard.errors import ModelError
from gpu_worker.layers.rope import LinearRope, Llama3Rope, Rope, YarnRope
from gpu_worker.models import load_config

LLAMA_3_1_8B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
LLAMA_1_7B = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_position_embeddings": 2048,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "rms_norm_eps": 1e-06,
    "torch_dtype": "float16",
    "vocab_size": 32000,
}
MISTRAL_7B = {
    "architectures": ["MistralForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 32000,
}
QWEN2_5_7B = {
    "architectures": ["Qwen2ForCausalLM"],
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "model_type": "qwen2",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 152064,
}
QWEN3_0_6B = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
}
PUBLISHED = {
    "Llama 3.1 8B": LLAMA_3_1_8B,
    "Llama 1 7B": LLAMA_1_7B,
    "Mistral 7B": MISTRAL_7B,
    "Qwen2.5 7B": QWEN2_5_7B,
    "Qwen3 0.6B": QWEN3_0_6B,
}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
ABSENT = object()


@pytest.fixture
def parse(tmp_path):
    def parse(base, **changes):
        values = {name: value for name, value in {**base, **changes}.items() if value is not ABSENT}
        (tmp_path / "config.json").write_text(json.dumps(values))
        return load_config(tmp_path)

    return parse


@pytest.mark.parametrize("published", PUBLISHED.values(), ids=PUBLISHED.keys())
def test_published_configurations_read_as_transformers_reads_them(published, parse, tmp_path):
    config = parse(published)
    theirs = AutoConfig.from_pretrained(tmp_path)
    head_dim = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    assert config.family == theirs.model_type
    assert config.num_layers == theirs.num_hidden_layers
    assert config.hidden_size == theirs.hidden_size
    assert config.intermediate_size == theirs.intermediate_size
    assert config.num_heads == theirs.num_attention_heads
    assert config.num_kv_heads == theirs.num_key_value_heads
    assert config.head_dim == head_dim
    assert config.vocab_size == theirs.vocab_size
    assert config.rms_norm_eps == theirs.rms_norm_eps
    assert config.rope.theta == theirs.rope_parameters["rope_theta"]
    assert config.max_position_embeddings == theirs.max_position_embeddings
    assert config.tie_word_embeddings == theirs.tie_word_embeddings
    assert config.dtype == theirs.dtype
    assert config.bos_token_id == theirs.bos_token_id
    eos = theirs.eos_token_id
    assert config.eos_token_ids == tuple(eos if isinstance(eos, list) else [eos])


@pytest.mark.parametrize("published", PUBLISHED.values(), ids=PUBLISHED.keys())
def test_what_transformers_5_saves_reads_the_same(published, parse, tmp_path):
    before = parse(published)
    saved = AutoConfig.from_pretrained(tmp_path)
    saved.save_pretrained(tmp_path)
    assert "rope_parameters" in json.loads((tmp_path / "config.json").read_text())
    assert load_config(tmp_path) == before


def test_families_differ_in_biases_and_norms(parse):
    def traits(config):
        return config.qkv_bias, config.o_bias, config.mlp_bias, config.qk_norm

    biased = {"attention_bias": True, "mlp_bias": True}
    assert traits(parse(LLAMA_3_1_8B)) == (False, False, False, False)
    assert traits(parse(LLAMA_3_1_8B, **biased)) == (True, True, True, False)
    assert traits(parse(MISTRAL_7B, **biased)) == (False, False, False, False)
    assert traits(parse(QWEN2_5_7B)) == (True, False, False, False)
    assert traits(parse(QWEN3_0_6B)) == (False, False, False, True)
    assert traits(parse(QWEN3_0_6B, **biased)) == (True, True, False, True)


def test_windows(parse):
    full, sliding = "full_attention", "sliding_attention"
    assert set(parse(LLAMA_3_1_8B, sliding_window=64).windows) == {None}
    assert parse(MISTRAL_7B).windows == (4096,) * 32
    assert parse(MISTRAL_7B, sliding_window=ABSENT).windows == (4096,) * 32
    assert parse(MISTRAL_7B, sliding_window=None).windows == (None,) * 32
    assert parse(QWEN2_5_7B).windows == (None,) * 28
    used = {"num_hidden_layers": 4, "use_sliding_window": True, "sliding_window": 64}
    assert parse(QWEN2_5_7B, **used, max_window_layers=3).windows == (None, None, None, 64)
    assert parse(QWEN2_5_7B, **used, max_window_layers=0).windows == (64,) * 4
    by_type = parse(QWEN3_0_6B, **used, layer_types=[full, sliding, full, sliding])
    assert by_type.windows == (None, 64, None, 64)


def test_rope(parse):
    def rope(**changes):
        return parse(QWEN2_5_7B, **changes).rope

    assert rope() == Rope(1e6)
    assert rope(rope_theta=ABSENT) == Rope(10_000.0)
    assert rope(rope_scaling={"rope_type": "dynamic", "factor": 2.0}) == Rope(1e6)
    assert rope(rope_scaling={"type": "linear", "factor": 2}) == LinearRope(1e6, factor=2.0)
    assert rope(rope_parameters={"rope_type": "linear", "factor": 2, "rope_theta": 5}) == LinearRope(5.0, 2.0)
    assert parse(LLAMA_3_1_8B).rope == Llama3Rope(5e5, 8.0, 1.0, 4.0, 8192)
    yarn = rope(rope_scaling=YARN)
    assert isinstance(yarn, YarnRope)
    assert yarn.attention_factor == pytest.approx(1.1386294)
    # Without a factor it follows from the lengths; the length beside the parameters counts.
    inferred = rope(rope_scaling={"type": "yarn"}, original_max_position_embeddings=8192)
    assert isinstance(inferred, YarnRope)
    assert inferred.factor == 4.0
    assert inferred.original_max_positions == 8192


def test_max_context_counts_rope_scaling_in(parse):
    assert parse(LLAMA_3_1_8B).max_context == 131_072
    assert parse(QWEN2_5_7B).max_context == 32_768
    assert parse(QWEN2_5_7B, rope_scaling=YARN).max_context == 131_072
    assert parse(QWEN2_5_7B, rope_scaling={"type": "dynamic", "factor": 2.0}).max_context == 32_768


def test_dtype(parse):
    assert parse(LLAMA_3_1_8B, torch_dtype=ABSENT).dtype is None
    assert parse(LLAMA_3_1_8B, torch_dtype=ABSENT, dtype="float32").dtype == torch.float32
    assert parse(LLAMA_3_1_8B, torch_dtype="torch.float16").dtype == torch.float16


def test_end_of_text_is_what_generation_config_names(parse, tmp_path):
    generation = tmp_path / "generation_config.json"
    generation.write_text(json.dumps({"eos_token_id": [151645, 151643]}))
    assert parse(QWEN2_5_7B).eos_token_ids == (151645, 151643)
    generation.write_text(json.dumps({"temperature": 0.6}))
    assert parse(QWEN2_5_7B).eos_token_ids == (151645,)
    assert parse(QWEN2_5_7B, eos_token_id=None, bos_token_id=None).eos_token_ids == ()


NESTED_ROPE = {"full_attention": {"rope_type": "default"}}
BAD_FIELDS = [
    (
        {"architectures": ["GPT2LMHeadModel"]},
        "GPT2LMHeadModel is not supported; supported are LlamaForCausalLM",
    ),
    ({"architectures": ABSENT}, "architecture (none named) is not supported"),
    ({"architectures": "LlamaForCausalLM"}, "architectures must be a list of strings"),
    ({"hidden_act": "gelu"}, "activation 'gelu' is not supported"),
    ({"quantization_config": {"quant_method": "gptq"}}, "quantized checkpoints are not supported"),
    ({"num_key_value_heads": 5}, "num_attention_heads (32) must be a multiple of num_key_value_heads (5)"),
    ({"hidden_size": 4095}, "hidden_size (4095) must be a multiple of num_attention_heads (32)"),
    ({"head_dim": 65}, "head_dim (65) must be even"),
    ({"vocab_size": ABSENT}, "vocab_size is missing"),
    ({"num_hidden_layers": 0}, "num_hidden_layers must be a whole number of at least 1, not 0"),
    ({"num_hidden_layers": True}, "num_hidden_layers must be a whole number"),
    ({"rms_norm_eps": "small"}, 'rms_norm_eps must be a positive number, not "small"'),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a positive number, not NaN"),
    ({"hidden_act": 3}, "hidden_act must be a string, not 3"),
    ({"tie_word_embeddings": "no"}, "tie_word_embeddings must be true or false"),
    ({"torch_dtype": "float8_e4m3fn"}, "dtype 'float8_e4m3fn' is not supported"),
    ({"eos_token_id": "</s>"}, "eos_token_id must be a token id or a list of them"),
    ({"layer_types": ["full_attention"]}, "layer_types has 1 entries for 32 layers"),
    ({"layer_types": ["linear_attention"] * 32}, "layer type 'linear_attention' is not supported"),
    ({"layer_types": ["sliding_attention"] * 32}, "no sliding_window is in use"),
    ({"rope_theta": 1}, "rope_theta must be greater than 1"),
    ({"rope_scaling": [1, 2]}, "rope_scaling must be an object, not [1, 2]"),
    ({"rope_scaling": {"type": "longrope"}}, "rope_scaling: rope type 'longrope' is not supported"),
    ({"rope_scaling": {"type": "linear"}}, "rope_scaling: factor is missing"),
    ({"rope_scaling": {"type": "linear", "factor": -1}}, "factor must be a positive number, not -1"),
    ({"rope_scaling": {**YARN, "beta_fast": 1, "beta_slow": 2}}, "beta_fast must not be less than beta_slow"),
    ({"rope_scaling": {**LLAMA_3_1_8B["rope_scaling"], "high_freq_factor": 1}}, "high_freq_factor must be"),
    (
        {"rope_scaling": {"type": "linear", "factor": 2, "partial_rotary_factor": 0.5}},
        "partial_rotary_factor",
    ),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor other than 1 is not supported"),
    ({"rope_scaling": NESTED_ROPE}, "separate parameters per layer type (full_attention) are not supported"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_FIELDS, ids=[message for _, message in BAD_FIELDS])
def test_bad_field(changes, message, parse, tmp_path):
    with pytest.raises(ModelError, match=re.escape(message)) as raised:
        parse(LLAMA_3_1_8B, **changes)
    assert str(raised.value).startswith(str(tmp_path / "config.json"))
    assert "\n" not in str(raised.value)


def test_missing_folder_or_file(tmp_path):
    with pytest.raises(ModelError, match="nowhere is not a folder"):
        load_config(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"has no config\.json"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not valid JSON"),
        (b"\xff\xfe{}", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[1]", r"must hold a JSON object, not \[1\]"),
    ],
)
def test_damaged_file(content, message, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=message) as raised:
        load_config(tmp_path)
    assert "\n" not in str(raised.value)


def test_unreadable_file(tmp_path):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ModelError, match="cannot be read"):
        load_config(tmp_path)
