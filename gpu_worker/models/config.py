"""What a model is: its sizes, its family's peculiarities, read from a Hugging Face folder."""

from dataclasses import dataclass
from pathlib import Path

import torch

from batchyard.errors import ModelError
from gpu_worker.layers.rope import Rope
from gpu_worker.models.config_fields import ConfigFields, read_json_object
from gpu_worker.models.rope_config import parse_rope

_FAMILIES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A decoder of the Llama family.

    family                   llama, mistral, qwen2 or qwen3
    windows                  per layer, the sliding window in tokens, or None: attends to everything
    max_position_embeddings  as the file states it; `max_context` is what the model can really attend over
    qk_norm                  query and key heads are RMS-normalised before they are rotated
    dtype                    what the checkpoint is stored in, None if the file does not say
    eos_token_ids            any of them ends the text; from generation_config.json if that names some
    """

    family: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope: Rope
    max_position_embeddings: int
    windows: tuple[int | None, ...]
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    tie_word_embeddings: bool
    dtype: torch.dtype | None
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]

    @property
    def max_context(self) -> int:
        """Tokens the model can attend over, rope scaling counted in: the most `max_model_len` may be."""
        return self.rope.max_context(self.max_position_embeddings)


def load_config(folder: Path) -> ModelConfig:
    """Read `config.json` (and `generation_config.json`, if there) of a model folder.

    Absent fields mean what they mean in `transformers`. Raises ModelError, in one line, if the folder or the
    file is missing or damaged or describes a model that Batchyard does not run.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder} is not a folder; give a model folder with config.json and *.safetensors")
    path = folder / "config.json"
    if not path.exists():
        raise ModelError(f"{folder} has no config.json; give a folder in the Hugging Face format")
    fields = ConfigFields(read_json_object(path), str(path))
    return _parse(fields, _generation_eos(folder))


def _parse(fields: ConfigFields, generation_eos: tuple[int, ...]) -> ModelConfig:
    family = _family(fields)
    _refuse_unsupported(fields)
    num_layers = fields.count("num_hidden_layers")
    num_heads, num_kv_heads, head_dim = _heads(fields, family)
    max_position_embeddings = fields.count("max_position_embeddings")
    qkv_bias, o_bias, mlp_bias = _biases(fields, family)
    bos = fields.token_ids("bos_token_id")
    return ModelConfig(
        family=family,
        num_layers=num_layers,
        hidden_size=fields.count("hidden_size"),
        intermediate_size=fields.count("intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=fields.count("vocab_size"),
        rms_norm_eps=fields.positive("rms_norm_eps", 1e-6),
        rope=parse_rope(fields, max_position_embeddings),
        max_position_embeddings=max_position_embeddings,
        windows=_windows(fields, family, num_layers),
        qkv_bias=qkv_bias,
        o_bias=o_bias,
        mlp_bias=mlp_bias,
        qk_norm=family == "qwen3",
        tie_word_embeddings=fields.flag("tie_word_embeddings", False),
        dtype=_dtype(fields),
        bos_token_id=bos[0] if bos else None,
        eos_token_ids=generation_eos or fields.token_ids("eos_token_id"),
    )


def _family(fields: ConfigFields) -> str:
    architectures = fields.texts("architectures")
    for architecture in architectures:
        if architecture in _FAMILIES:
            return _FAMILIES[architecture]
    named = ", ".join(architectures) or "(none named)"
    raise fields.error(f"architecture {named} is not supported; supported are {', '.join(_FAMILIES)}")


def _refuse_unsupported(fields: ConfigFields) -> None:
    if fields.nested("quantization_config") is not None:
        raise fields.error("quantized checkpoints are not supported; use the model's unquantized weights")
    activation = fields.text("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise fields.error(f"activation {activation!r} is not supported; supported is silu")


def _heads(fields: ConfigFields, family: str) -> tuple[int, int, int]:
    """(num_heads, num_kv_heads, head_dim)."""
    hidden_size = fields.count("hidden_size")
    num_heads = fields.count("num_attention_heads")
    num_kv_heads = fields.count("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise fields.error(
            f"num_attention_heads ({num_heads}) must be a multiple of num_key_value_heads ({num_kv_heads})"
        )
    head_dim = fields.optional_count("head_dim") or (128 if family == "qwen3" else None)
    if head_dim is None:
        if hidden_size % num_heads:
            raise fields.error(
                f"hidden_size ({hidden_size}) must be a multiple of num_attention_heads ({num_heads})"
            )
        head_dim = hidden_size // num_heads
    if head_dim % 2:
        raise fields.error(f"head_dim ({head_dim}) must be even, for rotary positions turn pairs")
    return num_heads, num_kv_heads, head_dim


def _biases(fields: ConfigFields, family: str) -> tuple[bool, bool, bool]:
    """Whether (query, key and value), output and feed-forward projections have one."""
    match family:
        case "qwen2":
            return True, False, False
        case "mistral":
            return False, False, False
    attention = fields.flag("attention_bias", False)
    return attention, attention, family == "llama" and fields.flag("mlp_bias", False)


def _windows(fields: ConfigFields, family: str, num_layers: int) -> tuple[int | None, ...]:
    window = _window(fields, family)
    layer_types = fields.texts("layer_types")
    if not layer_types:
        # Qwen keeps its first layers global; the others use the window everywhere.
        first = fields.count("max_window_layers", 28, at_least=0) if family in ("qwen2", "qwen3") else 0
        return tuple(window if layer >= first else None for layer in range(num_layers))
    if len(layer_types) != num_layers:
        raise fields.error(f"layer_types has {len(layer_types)} entries for {num_layers} layers")
    for layer_type in layer_types:
        if layer_type not in ("full_attention", "sliding_attention"):
            raise fields.error(f"layer type {layer_type!r} is not supported")
        if layer_type == "sliding_attention" and window is None:
            raise fields.error("layer_types names sliding_attention, but no sliding_window is in use")
    return tuple(window if layer_type == "sliding_attention" else None for layer_type in layer_types)


def _window(fields: ConfigFields, family: str) -> int | None:
    if family == "llama":
        return None
    if family in ("qwen2", "qwen3") and not fields.flag("use_sliding_window", False):
        return None
    # Here alone absent and null differ: null switches the window off.
    return fields.optional_count("sliding_window") if "sliding_window" in fields else 4096


def _dtype(fields: ConfigFields) -> torch.dtype | None:
    name = fields.text("dtype", fields.text("torch_dtype", "")).removeprefix("torch.")
    if not name:
        return None
    if name not in DTYPES:
        raise fields.error(f"dtype {name!r} is not supported; supported are {', '.join(DTYPES)}")
    return DTYPES[name]


def _generation_eos(folder: Path) -> tuple[int, ...]:
    path = folder / "generation_config.json"
    if not path.exists():
        return ()
    return ConfigFields(read_json_object(path), str(path)).token_ids("eos_token_id")
