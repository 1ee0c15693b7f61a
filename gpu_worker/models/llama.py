"""The decoder of the Llama family (Llama, Mistral, Qwen2, Qwen3): the architecture and nothing else."""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from gpu_worker.kernels.heads import AttentionHeads, QKNorm
from gpu_worker.kernels.metadata import AttentionMetadata
from gpu_worker.kernels.ops import KVCaches, Normed, Ops
from gpu_worker.layers.attention import Attention
from gpu_worker.layers.linear import Norm
from gpu_worker.layers.mlp import GatedMLP
from gpu_worker.layers.rope import cos_sin_table
from gpu_worker.models.config import ModelConfig
from gpu_worker.models.weights import LayerWeights, LlamaWeights


@dataclass(frozen=True, slots=True)
class _DecoderLayer:
    """`next_norm` is the next layer's first; the last layer has none, for the model's is another thing."""

    attention: Attention
    post_attention_norm: Norm
    mlp: GatedMLP
    next_norm: Norm | None


class LlamaModel:
    """Token ids in, hidden states and logits out. It keeps no state between calls: the cache is the caller's.

    No tensor here requires a gradient, no method waits for the device, and the Python executed depends on the
    shapes alone, so calls can be captured into CUDA graphs.
    """

    def __init__(self, config: ModelConfig, weights: LlamaWeights, ops: Ops, max_model_len: int) -> None:
        """`max_model_len`: positions 0 to max_model_len - 1 can be used."""
        self.config = config
        self._ops = ops
        self._embedding = weights.embedding
        self._first_norm = weights.layers[0].input_norm
        self._final_norm = weights.final_norm
        self._layers = _build_layers(config, weights, ops)
        self._lm_head = weights.lm_head
        self._cos_sin = cos_sin_table(config.rope, config.head_dim, max_model_len, weights.embedding.device)

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters, the hidden states and the caches."""
        return self._embedding.dtype

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self._embedding.device

    def forward(
        self,
        input_ids: torch.Tensor,
        metadata: AttentionMetadata,
        kv_caches: KVCaches,
    ) -> torch.Tensor:
        """Hidden states [T, hidden] after the final norm; writes this step's keys and values to the caches.

        input_ids [T] int32 or int64, packed as `metadata` says. kv_caches holds each layer's (keys, values),
        [num_blocks, block_size, num_kv_heads, head_dim] in the model's dtype.
        """
        ops, eps = self._ops, self.config.rms_norm_eps
        residual = F.embedding(input_ids, self._embedding)
        x = Normed(ops.rms_norm(residual, self._first_norm, eps), eps)
        for layer, kv_cache in zip(self._layers, kv_caches, strict=True):
            mixed = layer.attention.mixed(x, self._cos_sin, kv_cache, metadata)
            x = layer.attention.o.add_norm(mixed, residual, layer.post_attention_norm, ops)
            hidden = layer.mlp.hidden(x)
            if layer.next_norm is not None:
                x = layer.mlp.down.add_norm(hidden, residual, layer.next_norm, ops)
        return ops.add_rms_norm(self._layers[-1].mlp.down(hidden, ops), residual, self._final_norm, eps)

    def logits(self, hidden: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """[N, hidden] rows of `forward`'s result to [N, vocab] float32, into `out` if given.

        Pick the rows that sample first.
        """
        return self._ops.logits(hidden, self._lm_head, out)


def _build_layers(config: ModelConfig, weights: LlamaWeights, ops: Ops) -> list[_DecoderLayer]:
    eps = config.rms_norm_eps
    next_norms = [*(Norm(layer.input_norm, eps) for layer in weights.layers[1:]), None]
    return [
        _DecoderLayer(
            attention=_build_attention(config, layer, window, ops),
            post_attention_norm=Norm(layer.post_attention_norm, eps),
            mlp=GatedMLP(layer.gate_up, layer.down, ops),
            next_norm=next_norm,
        )
        for layer, window, next_norm in zip(weights.layers, config.windows, next_norms, strict=True)
    ]


def _build_attention(config: ModelConfig, layer: LayerWeights, window: int | None, ops: Ops) -> Attention:
    qk_norm = None
    if layer.q_norm is not None and layer.k_norm is not None:
        qk_norm = QKNorm(layer.q_norm, layer.k_norm, config.rms_norm_eps)
    heads = AttentionHeads(config.num_heads, config.num_kv_heads, config.head_dim, window, qk_norm)
    return Attention(layer.qkv, layer.o, heads, ops)
