"""Attention over a paged cache by Triton kernels: one way for tokens that decode, one for chunks."""

import math

import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from gpu_worker.kernels.arrivals import Arrivals
from gpu_worker.kernels.attention_reduce import attention_reduce_kernel
from gpu_worker.kernels.decode_attention import decode_attention_kernel
from gpu_worker.kernels.device_traits import DeviceTraits
from gpu_worker.kernels.gather_keys import gather_keys_kernel
from gpu_worker.kernels.heads import AttentionHeads
from gpu_worker.kernels.launch_shapes import (
    MAX_SEGMENTS,
    SHARED_SEGMENTS,
    AttentionTile,
    chunk_tile,
    decode_tile,
    min_segment_tiles,
    next_power_of_two,
    num_query_blocks,
    num_segments,
    shared_tile,
)
from gpu_worker.kernels.metadata import AttentionMetadata, ChunkKeys
from gpu_worker.kernels.ops import KVCache
from gpu_worker.kernels.prefill_attention import prefill_attention_kernel
from gpu_worker.kernels.rope_cache import rope_cache_kernel
from gpu_worker.kernels.shared_attention import shared_attention_kernel

_LOG2_E = math.log2(math.e)
_GATHERED_ROWS = 128  # heads of tokens that a program copies


class PagedAttention:
    """`Ops.attend` in Triton."""

    def __init__(self, traits: DeviceTraits) -> None:
        self._traits = traits
        self._options = traits.launch_options
        self._arrivals = Arrivals()

    def __call__(
        self,
        packed: torch.Tensor,
        heads: AttentionHeads,
        cos_sin: torch.Tensor,
        kv_cache: KVCache,
        metadata: AttentionMetadata,
    ) -> torch.Tensor:
        """See `Ops.attend`."""
        out = packed.new_empty((packed.shape[0], heads.num_heads * heads.head_dim))
        if metadata.num_decodes:
            self._decode(out, packed, heads, cos_sin, kv_cache, metadata)
        if metadata.num_chunks:
            self._prefill(out, packed, heads, cos_sin, kv_cache, metadata)
        return out

    def _decode(
        self,
        out: torch.Tensor,
        packed: torch.Tensor,
        heads: AttentionHeads,
        cos_sin: torch.Tensor,
        kv_cache: KVCache,
        metadata: AttentionMetadata,
    ) -> None:
        count, kv_heads = metadata.num_decodes, heads.num_kv_heads
        tile = decode_tile(heads.group, heads.head_dim, packed.itemsize)
        segments = num_segments(count * kv_heads, metadata.max_seq_len, tile, self._traits.multiprocessors)
        group_rows = next_power_of_two(heads.group)
        parts, log_sums, arrivals = out, out, out
        if segments > 1:
            parts, log_sums = _room_for_parts(out, (count, kv_heads, segments, group_rows), tile.block_d)
            arrivals = self._arrivals.on(out.device, count * kv_heads)
        shared_segments, shared_tokens, shared_parts, shared_log_sums = 0, metadata.counts, out, out
        # A window would leave out some of what is shared.
        if metadata.shared_keys is not None and heads.window is None:
            shared_segments, shared_tokens = SHARED_SEGMENTS, metadata.shared_keys.tokens
            shape = (count, kv_heads, SHARED_SEGMENTS, group_rows)
            shared_parts, shared_log_sums = _room_for_parts(out, shape, tile.block_d)
            self._share(shared_parts, shared_log_sums, packed, heads, cos_sin, kv_cache, metadata)
        q_norm, k_norm, eps = _norms(heads, packed)
        decode_attention_kernel[(count, kv_heads, segments)](
            out,
            packed,
            q_norm,
            k_norm,
            cos_sin,
            *kv_cache,
            metadata.block_tables,
            metadata.seq_lens,
            metadata.slots,
            metadata.counts,
            parts,
            log_sums,
            arrivals,
            shared_tokens,
            shared_parts,
            shared_log_sums,
            packed.stride(0),
            metadata.block_tables.stride(0),
            heads.scale * _LOG2_E,
            heads.window or 0,
            eps,
            BLOCK_SIZE=kv_cache[0].shape[1],
            GROUP_ROWS=group_rows,
            MIN_TILES=min_segment_tiles(tile),
            NORM=heads.qk_norm is not None,
            WINDOWED=heads.window is not None,
            SPLIT=segments > 1,
            SHARED=shared_segments,
            **_sizes(heads),
            **tile.options,
            **self._options,
        )

    def _share(
        self,
        parts: torch.Tensor,
        log_sums: torch.Tensor,
        packed: torch.Tensor,
        heads: AttentionHeads,
        cos_sin: torch.Tensor,
        kv_cache: KVCache,
        metadata: AttentionMetadata,
    ) -> None:
        """Attention over what sequences that decode share."""
        shared = metadata.shared_keys
        if shared is None:
            raise AssertionError("nothing is shared")
        tile = shared_tile(heads.group, heads.head_dim, packed.itemsize)
        q_norm, _, eps = _norms(heads, packed)
        num_groups, most_members = shared.members.shape
        shared_attention_kernel[(num_groups, heads.num_kv_heads, SHARED_SEGMENTS)](
            parts,
            log_sums,
            packed,
            q_norm,
            cos_sin,
            *kv_cache,
            metadata.block_tables,
            metadata.seq_lens,
            shared.members,
            shared.group_tokens,
            shared.count,
            packed.stride(0),
            metadata.block_tables.stride(0),
            heads.scale * _LOG2_E,
            eps,
            BLOCK_SIZE=kv_cache[0].shape[1],
            GROUP_ROWS=next_power_of_two(heads.group),
            MEMBERS=most_members,
            MIN_TILES=min_segment_tiles(tile),
            PROGRAMS=self._traits.multiprocessors * tile.programs_per_multiprocessor,
            NORM=heads.qk_norm is not None,
            **_sizes(heads),
            **tile.options,
            **self._options,
        )

    def _prefill(
        self,
        out: torch.Tensor,
        packed: torch.Tensor,
        heads: AttentionHeads,
        cos_sin: torch.Tensor,
        kv_cache: KVCache,
        metadata: AttentionMetadata,
    ) -> None:
        if metadata.chunk_keys is None:
            raise AssertionError("sequences prefill, and where their keys are is not said")
        self._rotate_and_cache(packed, heads, cos_sin, kv_cache, metadata)
        keys, values = self._gather(kv_cache, metadata.chunk_keys, metadata.counts)
        tile = chunk_tile(heads.group, heads.head_dim, packed.itemsize, self._traits.shared_memory)
        num_tokens = packed.shape[0]
        blocks = num_query_blocks(num_tokens, metadata.num_chunks, tile.block_q)
        programs = blocks * heads.num_kv_heads
        segments = num_segments(programs, metadata.max_seq_len, tile, self._traits.multiprocessors)
        parts, log_sums = out, out
        if segments > 1:
            rows = (num_tokens, heads.num_heads, segments)
            parts, log_sums = _room_for_parts(out, rows, heads.head_dim)
        prefill_attention_kernel[(blocks, heads.num_kv_heads, segments)](
            parts,
            log_sums,
            packed,
            _descriptor(keys, tile),
            _descriptor(values, tile),
            metadata.chunk_keys.starts,
            metadata.query_start,
            metadata.seq_lens,
            metadata.counts,
            keys.shape[1],
            packed.stride(0),
            heads.scale * _LOG2_E,
            heads.window or 0,
            BLOCK_Q=tile.block_q,
            WINDOWED=heads.window is not None,
            SPLIT=segments > 1,
            **_sizes(heads),
            **tile.options,
            **self._options,
        )
        if segments > 1:
            self._reduce(out, parts, log_sums, heads, metadata.counts)

    def _rotate_and_cache(
        self,
        packed: torch.Tensor,
        heads: AttentionHeads,
        cos_sin: torch.Tensor,
        kv_cache: KVCache,
        metadata: AttentionMetadata,
    ) -> None:
        """Of the tokens that prefill; those that decode do it in their attention."""
        q_norm, k_norm, eps = _norms(heads, packed)
        rope_cache_kernel[(packed.shape[0],)](
            packed,
            q_norm,
            k_norm,
            cos_sin,
            *kv_cache,
            metadata.positions,
            metadata.slots,
            metadata.counts,
            packed.stride(0),
            eps,
            HEADS=heads.num_heads,
            KV_HEADS=heads.num_kv_heads,
            HEAD_DIM=heads.head_dim,
            BLOCK_HEADS=next_power_of_two(heads.num_heads),
            BLOCK_KV_HEADS=next_power_of_two(heads.num_kv_heads),
            BLOCK_HALF=next_power_of_two(heads.head_dim // 2),
            NORM=heads.qk_norm is not None,
            num_warps=4,
            **self._options,
        )

    def _gather(self, kv_cache: KVCache, chunk_keys: ChunkKeys, counts: torch.Tensor) -> KVCache:
        """Keys and values of all sequences that prefill, [num_kv_heads, num_keys, head_dim] each."""
        _, block_size, kv_heads, head_dim = kv_cache[0].shape
        num_blocks = chunk_keys.blocks.shape[0]
        keys = kv_cache[0].new_empty((kv_heads, num_blocks * block_size, head_dim))
        values = torch.empty_like(keys)
        rows = block_size * kv_heads
        block_rows = min(_GATHERED_ROWS, next_power_of_two(rows))
        gather_keys_kernel[(num_blocks, -(-rows // block_rows))](
            keys,
            values,
            *kv_cache,
            chunk_keys.blocks,
            counts,
            num_blocks * block_size,
            KV_HEADS=kv_heads,
            HEAD_DIM=head_dim,
            BLOCK_SIZE=block_size,
            BLOCK_ROWS=block_rows,
            BLOCK_D=next_power_of_two(head_dim),
            num_warps=8,
            **self._options,
        )
        return keys, values

    def _reduce(
        self,
        out: torch.Tensor,
        parts: torch.Tensor,
        log_sums: torch.Tensor,
        heads: AttentionHeads,
        counts: torch.Tensor,
    ) -> None:
        num_tokens, num_heads, segments = log_sums.shape
        attention_reduce_kernel[(num_tokens, num_heads)](
            out,
            parts,
            log_sums,
            counts,
            segments,
            HEADS=num_heads,
            HEAD_DIM=heads.head_dim,
            MAX_SEGMENTS=MAX_SEGMENTS,
            BLOCK_D=next_power_of_two(heads.head_dim),
            num_warps=2,
            **self._options,
        )


def _sizes(heads: AttentionHeads) -> dict[str, int]:
    """What all attention kernels are compiled for."""
    return {"KV_HEADS": heads.num_kv_heads, "GROUP": heads.group, "HEAD_DIM": heads.head_dim}


def _norms(heads: AttentionHeads, packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Weights of queries' and keys' norms and their epsilon; anything where there are none."""
    norm = heads.qk_norm
    return (packed, packed, 0.0) if norm is None else (norm.q_weight, norm.k_weight, norm.eps)


def _room_for_parts(
    like: torch.Tensor, rows: tuple[int, ...], width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """For what segments compute, [*rows, width], and the logarithms of their sums, `rows`; float32."""
    log_sums = torch.empty(rows, dtype=torch.float32, device=like.device)
    return torch.empty((*rows, width), dtype=torch.float32, device=like.device), log_sums


def _descriptor(keys: torch.Tensor, tile: AttentionTile) -> TensorDescriptor:
    """For tiles of [block_n, block_d] of `keys` [num_kv_heads, num_keys, head_dim]; zeros outside of it."""
    return TensorDescriptor.from_tensor(keys.view(-1, keys.shape[2]), [tile.block_n, tile.block_d])
