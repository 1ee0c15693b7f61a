"""The Llama architecture for training: weights are named as in `transformers.LlamaForCausalLM`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Attention = Callable[[Tensor, Tensor, Tensor, Any], Tensor]
"""(queries `[rows, heads, length, head_dim]`, keys, values `[rows, kv_heads, ...]`, mask) to outputs."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a model, in the words of `LlamaConfig`."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5


def masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
    """Attention under a boolean mask `[rows, 1, length, length]`, for any device."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


class _Norm(nn.Module):
    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self._epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self._epsilon) * self.weight).to(
            x.dtype
        )


class _SelfAttention(nn.Module):
    def __init__(self, shape: Shape, attention: Attention) -> None:
        super().__init__()
        self._shape, self._attention = shape, attention
        wide, narrow = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, wide, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, narrow, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, narrow, bias=False)
        self.o_proj = nn.Linear(wide, shape.hidden_size, bias=False)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor, mask: Any) -> Tensor:
        rows, length, _ = x.shape
        heads = (rows, length, -1, self._shape.head_dim)
        q = _rotate(self.q_proj(x).view(heads).transpose(1, 2), cosine, sine)
        k = _rotate(self.k_proj(x).view(heads).transpose(1, 2), cosine, sine)
        v = self.v_proj(x).view(heads).transpose(1, 2)
        seen = self._attention(q, k, v, mask)
        merged: Tensor = self.o_proj(seen.transpose(1, 2).reshape(rows, length, -1))
        return merged


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)
    return turned.to(x.dtype)


class _Mlp(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        down: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return down


class _Layer(nn.Module):
    def __init__(self, shape: Shape, attention: Attention) -> None:
        super().__init__()
        self.input_layernorm = _Norm(shape.hidden_size, shape.rms_norm_eps)
        self.self_attn = _SelfAttention(shape, attention)
        self.post_attention_layernorm = _Norm(shape.hidden_size, shape.rms_norm_eps)
        self.mlp = _Mlp(shape)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor, mask: Any) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cosine, sine, mask)
        added: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return added


class _Body(nn.Module):
    def __init__(self, shape: Shape, attention: Attention) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(_Layer(shape, attention) for _ in range(shape.num_hidden_layers))
        self.norm = _Norm(shape.hidden_size, shape.rms_norm_eps)


class Llama(nn.Module):
    """Token ids `[rows, length]` to logits `[rows, length, vocab_size]`; tied embeddings."""

    cosine: Tensor
    sine: Tensor

    def __init__(self, shape: Shape, attention: Attention) -> None:
        super().__init__()
        self.shape = shape
        self.model = _Body(shape, attention)
        inverse = shape.rope_theta ** (-torch.arange(0, shape.head_dim, 2).float() / shape.head_dim)
        angles = torch.outer(torch.arange(shape.max_position_embeddings).float(), inverse)
        self.register_buffer("cosine", angles.cos(), persistent=False)
        self.register_buffer("sine", angles.sin(), persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        """GPT-2's initialisation: what adds to the residual stream is scaled down by its depth."""
        depth = (2 * self.shape.num_hidden_layers) ** -0.5
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(weight, std=0.02 * (depth if residual else 1.0))

    def forward(self, tokens: Tensor, mask: Any) -> Tensor:
        x = self.model.embed_tokens(tokens)
        cosine, sine = self.cosine[: tokens.shape[1]], self.sine[: tokens.shape[1]]
        for layer in self.model.layers:
            x = layer(x, cosine, sine, mask)
        return F.linear(self.model.norm(x), self.model.embed_tokens.weight)
