"""The operations as Triton kernels, for GPUs. Nothing here waits for the device."""

import math

import torch

from gpu_worker.kernels.attention import attention_kernel
from gpu_worker.kernels.attention_reduce import attention_reduce_kernel
from gpu_worker.kernels.launch_shapes import (
    MAX_SEGMENTS,
    SWIGLU_BLOCK,
    AttentionTile,
    chunk_tile,
    decode_tile,
    next_power_of_two,
    num_query_blocks,
    num_segments,
    row_tile,
)
from gpu_worker.kernels.metadata import AttentionMetadata
from gpu_worker.kernels.rms_norm import rms_norm_kernel
from gpu_worker.kernels.rope_cache import rope_cache_kernel
from gpu_worker.kernels.swiglu import swiglu_kernel

# Multiply and add at once, which Triton is about to stop doing unless told.
_COMPILE = {"enable_fp_fusion": True}


class TritonOps:
    """`Ops` in Triton. Caches must be contiguous, and heads of q, k and v lie side by side."""

    def __init__(self, num_multiprocessors: int) -> None:
        self._num_multiprocessors = num_multiprocessors

    @classmethod
    def for_device(cls, device: torch.device) -> "TritonOps":
        return cls(torch.cuda.get_device_properties(device).multi_processor_count)

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        return _norm(x, None, weight, eps)

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        return _norm(x, residual, weight, eps)

    def swiglu(self, gate_up: torch.Tensor) -> torch.Tensor:
        num_tokens, width = gate_up.shape
        out = gate_up.new_empty((num_tokens, width // 2))
        grid = (num_tokens, -(-(width // 2) // SWIGLU_BLOCK))
        swiglu_kernel[grid](
            out,
            gate_up,
            gate_up.stride(0),
            INTERMEDIATE=width // 2,
            BLOCK=SWIGLU_BLOCK,
            num_warps=4,
            **_COMPILE,
        )
        return out

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
        num_tokens, num_heads, head_dim = q.shape
        num_kv_heads = k.shape[1]
        rope_cache_kernel[(num_tokens,)](
            q,
            k,
            v,
            cos_sin,
            k_cache,
            v_cache,
            metadata.positions,
            metadata.slots,
            q.stride(0),
            k.stride(0),
            v.stride(0),
            HEADS=num_heads,
            KV_HEADS=num_kv_heads,
            HEAD_DIM=head_dim,
            BLOCK_HEADS=next_power_of_two(num_heads),
            BLOCK_KV_HEADS=next_power_of_two(num_kv_heads),
            BLOCK_HALF=next_power_of_two(head_dim // 2),
            num_warps=4,
            **_COMPILE,
        )

    def attention(
        self,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        metadata: AttentionMetadata,
        scale: float,
        window: int | None,
    ) -> torch.Tensor:
        num_tokens, num_heads, head_dim = q.shape
        group = num_heads // k_cache.shape[2]
        out = q.new_empty((num_tokens, num_heads * head_dim))
        num_decodes = metadata.num_decodes
        # Two launches, since what suits one token of a sequence wastes many and the other way around.
        if num_decodes:
            tile = decode_tile(group, head_dim, q.itemsize)
            self._attend(out, q, k_cache, v_cache, metadata, scale, window, tile, 0, num_decodes)
        if metadata.num_seqs > num_decodes:
            tile = chunk_tile(group, head_dim, q.itemsize)
            self._attend(
                out, q, k_cache, v_cache, metadata, scale, window, tile, num_decodes, metadata.num_seqs
            )
        return out

    def _attend(
        self,
        out: torch.Tensor,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        metadata: AttentionMetadata,
        scale: float,
        window: int | None,
        tile: AttentionTile,
        first_seq: int,
        end_seq: int,
    ) -> None:
        """Attention of sequences first_seq .. end_seq into their rows of `out`."""
        _, num_heads, head_dim = q.shape
        _, block_size, num_kv_heads, _ = k_cache.shape
        # All before first_seq have one token each.
        num_tokens = end_seq if tile.block_q == 1 else q.shape[0] - first_seq
        blocks = num_query_blocks(num_tokens, end_seq - first_seq, tile.block_q)
        segments = num_segments(blocks * num_kv_heads, metadata.max_seq_len, tile, self._num_multiprocessors)
        parts, log_sums = out, out
        if segments > 1:
            rows = (num_tokens, num_heads, segments)
            log_sums = torch.empty(rows, dtype=torch.float32, device=q.device)
            parts = torch.empty((*rows, head_dim), dtype=torch.float32, device=q.device)
        attention_kernel[(blocks, num_kv_heads, segments)](
            parts,
            log_sums,
            q,
            k_cache,
            v_cache,
            metadata.block_tables,
            metadata.query_start,
            metadata.seq_lens,
            first_seq,
            end_seq,
            q.stride(0),
            metadata.block_tables.stride(0),
            scale * math.log2(math.e),
            window or 0,
            KV_HEADS=num_kv_heads,
            GROUP=num_heads // num_kv_heads,
            HEAD_DIM=head_dim,
            BLOCK_SIZE=block_size,
            WINDOWED=window is not None,
            SPLIT=segments > 1,
            **tile.options,
            **_COMPILE,
        )
        if segments > 1:
            attention_reduce_kernel[(num_tokens, num_heads)](
                out,
                parts,
                log_sums,
                first_seq,
                segments,
                HEADS=num_heads,
                HEAD_DIM=head_dim,
                MAX_SEGMENTS=MAX_SEGMENTS,
                BLOCK_D=tile.block_d,
                num_warps=2,
                **_COMPILE,
            )


def _norm(x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float) -> torch.Tensor:
    hidden = x.shape[-1]
    heads = x.shape[1] if x.dim() == 3 else 1
    tile = row_tile(hidden)
    out = x.new_empty(x.shape)
    num_rows = x.shape[0] * heads
    rms_norm_kernel[(-(-num_rows // tile.rows),)](
        out,
        x,
        x if residual is None else residual,
        weight,
        num_rows,
        x.stride(0),
        x.stride(0) if residual is None else residual.stride(0),
        eps,
        ADD=residual is not None,
        HEADS=heads,
        HIDDEN=hidden,
        BLOCK_ROWS=tile.rows,
        BLOCK_HIDDEN=tile.columns,
        num_warps=tile.num_warps,
        **_COMPILE,
    )
    return out
