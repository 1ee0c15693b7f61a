"""The parameters of a model: packed as the kernels want them, named as checkpoints name them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from gpu_worker.layers.linear import Linear
from gpu_worker.models.config import ModelConfig


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer. Norms are [hidden], `q_norm` and `k_norm` (Qwen3, else None) [head_dim].

    qkv      [(num_heads + 2 * num_kv_heads) * head_dim, hidden]
    o        [hidden, num_heads * head_dim]
    gate_up  [2 * intermediate, hidden]
    down     [hidden, intermediate]
    """

    input_norm: torch.Tensor
    qkv: Linear
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    o: Linear
    post_attention_norm: torch.Tensor
    gate_up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class LlamaWeights:
    """embedding, lm_head [vocab, hidden], one tensor if tied; final_norm [hidden]."""

    embedding: torch.Tensor
    layers: tuple[LayerWeights, ...]
    final_norm: torch.Tensor
    lm_head: torch.Tensor


def allocate_weights(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> LlamaWeights:
    """Uninitialised parameters on `device`."""

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    embedding = empty(config.vocab_size, config.hidden_size)
    return LlamaWeights(
        embedding=embedding,
        layers=tuple(_allocate_layer(config, dtype, device) for _ in range(config.num_layers)),
        final_norm=empty(config.hidden_size),
        lm_head=embedding if config.tie_word_embeddings else empty(config.vocab_size, config.hidden_size),
    )


def _allocate_layer(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> LayerWeights:
    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    def linear(outputs: int, inputs: int, bias: bool) -> Linear:
        return Linear(empty(outputs, inputs), empty(outputs) if bias else None)

    hidden, intermediate = config.hidden_size, config.intermediate_size
    q_size = config.num_heads * config.head_dim
    kv_size = config.num_kv_heads * config.head_dim
    return LayerWeights(
        input_norm=empty(hidden),
        qkv=linear(q_size + 2 * kv_size, hidden, config.qkv_bias),
        q_norm=empty(config.head_dim) if config.qk_norm else None,
        k_norm=empty(config.head_dim) if config.qk_norm else None,
        o=linear(hidden, q_size, config.o_bias),
        post_attention_norm=empty(hidden),
        gate_up=linear(2 * intermediate, hidden, config.mlp_bias),
        down=linear(hidden, intermediate, config.mlp_bias),
    )


def checkpoint_names(weights: LlamaWeights, config: ModelConfig) -> dict[str, torch.Tensor]:
    """Every parameter by the name a Hugging Face checkpoint gives it, as a view of where it is stored.

    The views cover all parameters, each element once; a tied `lm_head` has no name of its own.
    """
    names = {"model.embed_tokens.weight": weights.embedding, "model.norm.weight": weights.final_norm}
    if not config.tie_word_embeddings:
        names["lm_head.weight"] = weights.lm_head
    for index, layer in enumerate(weights.layers):
        names.update((f"model.layers.{index}.{name}", view) for name, view in _layer_names(layer, config))
    return names


def _layer_names(layer: LayerWeights, config: ModelConfig) -> Iterator[tuple[str, torch.Tensor]]:
    q_size = config.num_heads * config.head_dim
    kv_size = config.num_kv_heads * config.head_dim
    yield "input_layernorm.weight", layer.input_norm
    yield from _parts(
        layer.qkv, ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), (q_size, kv_size, kv_size)
    )
    if layer.q_norm is not None and layer.k_norm is not None:
        yield "self_attn.q_norm.weight", layer.q_norm
        yield "self_attn.k_norm.weight", layer.k_norm
    yield from _parts(layer.o, ("self_attn.o_proj",), (config.hidden_size,))
    yield "post_attention_layernorm.weight", layer.post_attention_norm
    yield from _parts(layer.gate_up, ("mlp.gate_proj", "mlp.up_proj"), (config.intermediate_size,) * 2)
    yield from _parts(layer.down, ("mlp.down_proj",), (config.hidden_size,))


def _parts(linear: Linear, names: Sequence[str], sizes: Sequence[int]) -> Iterator[tuple[str, torch.Tensor]]:
    """The projections packed into `linear`, `sizes` rows each."""
    for name, rows in zip(names, torch.split(linear.weight, list(sizes)), strict=True):
        yield f"{name}.weight", rows
    if linear.bias is not None:
        for name, rows in zip(names, torch.split(linear.bias, list(sizes)), strict=True):
            yield f"{name}.bias", rows
