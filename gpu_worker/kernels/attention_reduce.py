"""Joins what attention computed in segments of the keys (Flash-Decoding, Dao et al. 2023)."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
import triton
import triton.language as tl

from gpu_worker.kernels.attention_steps import LOWEST, MASKED
from gpu_worker.kernels.overlap import let_next_kernel_start, wait_for_kernel_ahead


@triton.jit(do_not_specialize=["num_segments"])
def attention_reduce_kernel(
    out,  # [num_tokens, HEADS, HEAD_DIM] contiguous
    parts,  # [num_tokens, HEADS, num_segments, HEAD_DIM] float32: each segment's own softmax
    log_sums,  # [num_tokens, HEADS, num_segments] float32: log2 of its sum, -inf if it saw no key
    counts,  # [1] int32: how many tokens at the beginning are left alone
    num_segments,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    MAX_SEGMENTS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """A program joins one token's head."""
    let_next_kernel_start(OVERLAP)
    wait_for_kernel_ahead(OVERLAP)
    if tl.program_id(0) < tl.load(counts):
        return
    row = tl.program_id(0).to(tl.int64) * HEADS + tl.program_id(1)
    segments = tl.arange(0, MAX_SEGMENTS)
    place = row * num_segments + segments
    log_sum = tl.load(log_sums + place, mask=segments < num_segments, other=MASKED)
    maximum = tl.maximum(tl.max(log_sum, axis=0), LOWEST)
    weights = tl.exp2(log_sum - maximum)
    total = tl.sum(weights, axis=0)

    dims = tl.arange(0, BLOCK_D)
    # What has no weight was never written.
    inside = (log_sum > MASKED)[:, None] & (dims < HEAD_DIM)[None, :]
    part = tl.load(parts + place[:, None] * HEAD_DIM + dims[None, :], mask=inside, other=0.0)
    mixed = tl.sum(part * weights[:, None], axis=0) / tl.where(total > 0, total, 1.0)
    tl.store(out + row * HEAD_DIM + dims, mixed.to(out.dtype.element_ty), mask=dims < HEAD_DIM)
