"""The operations in plain PyTorch: what each of them means, and what a worker without a GPU runs."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from gpu_worker.kernels.heads import AttentionHeads
from gpu_worker.kernels.metadata import AttentionMetadata
from gpu_worker.kernels.ops import KVCache, Normed, as_normed

# Keys gathered for one call of attention, in elements: 2 MiB of float32. What is gathered is then still in
# the processor's cache when it is used, and padding short sequences to long ones never costs more than this.
_GATHER_ELEMENTS = 1 << 19


@dataclass(frozen=True, slots=True)
class _DecodeGroup:
    """Decoding sequences of similar length, attended to together."""

    rows: torch.Tensor  # [num_rows] int64: which sequences, and so which tokens of the step
    slots: torch.Tensor  # [num_rows * width] int32: where their keys are
    visible: torch.Tensor  # [num_rows, 1, 1, width] bool: False where a shorter sequence is padded


@dataclass(frozen=True, slots=True)
class _Chunk:
    """The new tokens of one prefilling sequence."""

    tokens: slice
    slots: torch.Tensor  # [num_keys] int32
    visible: torch.Tensor | None  # [query_len, num_keys] bool; None: the chunk is all there is, plain causal


@dataclass(frozen=True, slots=True)
class _Plan:
    """Where the keys of a step are: the same in every layer with the same window."""

    metadata: AttentionMetadata
    block_size: int
    window: int | None
    decodes: list[_DecodeGroup]
    chunks: list[_Chunk]

    def fits(self, metadata: AttentionMetadata, block_size: int, window: int | None) -> bool:
        return self.metadata is metadata and self.block_size == block_size and self.window == window


class _Gatherer:
    """Gathers into one buffer, again and again: fresh memory of this size costs more than filling it."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0)

    def __call__(self, cache: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """`slots` [n] of `cache` [num_blocks, block_size, ...] as [n, ...], valid until the next call."""
        rows = cache.view(-1, *cache.shape[2:])
        needed = len(slots) * rows[0].numel()
        buffer = self._buffer
        if buffer.numel() < needed or buffer.dtype != cache.dtype or buffer.device != cache.device:
            # A tensor made in inference mode could not be filled outside it.
            with torch.inference_mode(False):
                self._buffer = buffer = cache.new_empty(needed)
        gathered = buffer[:needed].view(len(slots), *rows.shape[1:])
        return torch.index_select(rows, 0, slots, out=gathered)


class TorchOps:
    """`Ops` in PyTorch, for any device. Caches must be contiguous.

    Attention plans a step when it first sees its metadata and uses that for the following layers, so a
    metadata object must not be filled anew for another step. One thread at a time: it gathers into buffers
    of its own.
    """

    def __init__(self) -> None:
        self._plan: _Plan | None = None
        self._gather_keys = _Gatherer()
        self._gather_values = _Gatherer()

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        return (normed * weight).to(x.dtype)

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        residual += x
        return self.rms_norm(residual, weight, eps)

    def linear(
        self, x: torch.Tensor | Normed, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        return F.linear(as_normed(x).scaled(), weight, bias)

    def linear_add_norm(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        residual: torch.Tensor,
        norm_weight: torch.Tensor,
        eps: float,
    ) -> Normed:
        return Normed(self.add_rms_norm(F.linear(x, weight, bias), residual, norm_weight, eps), eps)

    def gated_linear(
        self, x: torch.Tensor | Normed, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        gate, up = F.linear(as_normed(x).scaled(), weight, bias).float().chunk(2, dim=-1)
        return (F.silu(gate) * up).to(weight.dtype)

    def logits(self, x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        logits = F.linear(x, weight)
        return logits.float() if out is None else out.copy_(logits)

    def attend(
        self,
        packed: torch.Tensor,
        heads: AttentionHeads,
        cos_sin: torch.Tensor,
        kv_cache: KVCache,
        metadata: AttentionMetadata,
    ) -> torch.Tensor:
        by_head = packed.view(packed.shape[0], heads.packed, heads.head_dim)
        q, k, v = torch.split(by_head, [heads.num_heads, heads.num_kv_heads, heads.num_kv_heads], dim=1)
        if heads.qk_norm is not None:
            q = self.rms_norm(q, heads.qk_norm.q_weight, heads.qk_norm.eps)
            k = self.rms_norm(k, heads.qk_norm.k_weight, heads.qk_norm.eps)
        self.rope_and_cache(q, k, v, cos_sin, *kv_cache, metadata)
        return self.attention(q, *kv_cache, metadata, heads.scale, heads.window)

    def rope_and_cache(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cos_sin: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        metadata: AttentionMetadata,
    ) -> None:
        """Rotates q [T, num_heads, head_dim] and k [T, num_kv_heads, head_dim] in place, caches k and v."""
        cos, sin = cos_sin[metadata.positions].unsqueeze(1).chunk(2, dim=-1)
        _rotate(q, cos, sin)
        _rotate(k, cos, sin)
        slots = metadata.slots.long()
        padding = slots < 0
        if padding.any():
            kept = ~padding
            slots, k, v = slots[kept], k[kept], v[kept]
        k_cache.view(-1, *k.shape[1:])[slots] = k
        v_cache.view(-1, *v.shape[1:])[slots] = v

    def attention(
        self,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        metadata: AttentionMetadata,
        scale: float,
        window: int | None,
    ) -> torch.Tensor:
        """Of rotated queries [T, num_heads, head_dim] over what is cached: [T, num_heads * head_dim]."""
        block_size, num_kv_heads, head_dim = k_cache.shape[1:]
        if self._plan is None or not self._plan.fits(metadata, block_size, window):
            self._plan = _plan(metadata, block_size, window, _GATHER_ELEMENTS // (num_kv_heads * head_dim))
        # Heads that share keys side by side: [T, num_kv_heads, group, head_dim].
        grouped = q.view(q.shape[0], num_kv_heads, -1, head_dim)
        out = torch.zeros_like(grouped, memory_format=torch.contiguous_format)
        for group in self._plan.decodes:
            # A group's heads stand where attention has its queries: [rows, num_kv_heads, group, head_dim].
            shape = (len(group.rows), -1, num_kv_heads, head_dim)
            out[group.rows] = F.scaled_dot_product_attention(
                grouped[group.rows],
                self._gather_keys(k_cache, group.slots).view(shape).transpose(1, 2),
                self._gather_values(v_cache, group.slots).view(shape).transpose(1, 2),
                attn_mask=group.visible,
                scale=scale,
            )
        for chunk in self._plan.chunks:
            # KV heads as the batch, [num_kv_heads, group, query_len, D], and keys repeated by stride 0 alone.
            queries = grouped[chunk.tokens].permute(1, 2, 0, 3)
            shape = (num_kv_heads, queries.shape[1], -1, head_dim)
            out[chunk.tokens] = F.scaled_dot_product_attention(
                queries,
                self._gather_keys(k_cache, chunk.slots).transpose(0, 1).unsqueeze(1).expand(shape),
                self._gather_values(v_cache, chunk.slots).transpose(0, 1).unsqueeze(1).expand(shape),
                attn_mask=chunk.visible,
                is_causal=chunk.visible is None,
                scale=scale,
            ).permute(2, 0, 1, 3)
        return out.flatten(1)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """`x` [T, heads, head_dim] in place; cos and sin [T, 1, head_dim / 2]."""
    first, second = x.float().chunk(2, dim=-1)
    x.copy_(torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1))


def _plan(metadata: AttentionMetadata, block_size: int, window: int | None, max_tokens: int) -> _Plan:
    seq_lens = metadata.seq_lens.tolist()
    query_start = metadata.query_start.tolist()
    spans = [seq_len if window is None else min(seq_len, window) for seq_len in seq_lens]
    decodes = [
        _decode_group(metadata, rows, spans[rows[0]], block_size, window)
        for rows in _groups(spans[: metadata.num_decodes], max_tokens)
    ]
    chunks = [
        _chunk(metadata, s, slice(query_start[s], query_start[s + 1]), seq_lens[s], block_size, window)
        for s in range(metadata.num_decodes, metadata.num_decodes + metadata.num_chunks)
        if query_start[s] < query_start[s + 1]
    ]
    return _Plan(metadata, block_size, window, decodes, chunks)


def _groups(spans: list[int], max_tokens: int) -> Iterator[list[int]]:
    """Rows longest first, cut so that no group, padded to its longest, gathers more than `max_tokens` or is
    more than one row. Rows without keys (padding) are in none."""
    group: list[int] = []
    for row in sorted((row for row, span in enumerate(spans) if span), key=lambda row: -spans[row]):
        if group and (len(group) + 1) * spans[group[0]] > max_tokens:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _decode_group(
    metadata: AttentionMetadata, rows: list[int], width: int, block_size: int, window: int | None
) -> _DecodeGroup:
    device = metadata.seq_lens.device
    index = torch.tensor(rows, device=device)
    seq_lens = metadata.seq_lens[index].unsqueeze(1)
    first = torch.zeros_like(seq_lens) if window is None else (seq_lens - window).clamp(min=0)
    positions = first + torch.arange(width, dtype=torch.int32, device=device)
    visible = positions < seq_lens
    # What lies behind the end of a sequence was perhaps never written, and NaN would survive the mask:
    # padding reads the last token again.
    slots = _slots(metadata.block_tables[index], positions.minimum(seq_lens - 1), block_size)
    return _DecodeGroup(index, slots.flatten(), visible[:, None, None, :])


def _chunk(
    metadata: AttentionMetadata, seq: int, tokens: slice, seq_len: int, block_size: int, window: int | None
) -> _Chunk:
    context = seq_len - (tokens.stop - tokens.start)
    first = 0 if window is None else max(0, context - window + 1)
    positions = torch.arange(first, seq_len, dtype=torch.int32, device=metadata.seq_lens.device)
    slots = _slots(metadata.block_tables[seq : seq + 1], positions.unsqueeze(0), block_size).flatten()
    if context == 0 and (window is None or window >= seq_len):
        return _Chunk(tokens, slots, None)
    queries = torch.arange(context, seq_len, dtype=torch.int32, device=positions.device).unsqueeze(1)
    visible = positions <= queries
    if window is not None:
        visible &= positions > queries - window
    return _Chunk(tokens, slots, visible)


def _slots(block_tables: torch.Tensor, positions: torch.Tensor, block_size: int) -> torch.Tensor:
    """The slots of `positions` [rows, n] int32, each row's in its own block table, [rows, n] int32."""
    blocks = block_tables.gather(1, (positions // block_size).long())
    return blocks * block_size + positions % block_size
