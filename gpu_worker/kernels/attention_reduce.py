"""Joins what attention computed in segments of the keys (Flash-Decoding, Dao et al. 2023)."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
import triton
import triton.language as tl

_LOWEST = tl.constexpr(-1.0e30)
_NO_WEIGHT = tl.constexpr(float("-inf"))


@triton.jit(do_not_specialize=["first_token", "num_segments"])
def attention_reduce_kernel(
    out,  # [num_tokens, HEADS, HEAD_DIM] contiguous
    parts,  # [tokens of the launch, HEADS, num_segments, HEAD_DIM] float32: each segment's own softmax
    log_sums,  # [tokens of the launch, HEADS, num_segments] float32: log2 of its sum, -inf if it saw no key
    first_token,  # of the launch
    num_segments,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    MAX_SEGMENTS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """A program joins one token's head."""
    row = tl.program_id(0).to(tl.int64) * HEADS + tl.program_id(1)
    segments = tl.arange(0, MAX_SEGMENTS)
    place = row * num_segments + segments
    log_sum = tl.load(log_sums + place, mask=segments < num_segments, other=_NO_WEIGHT)
    maximum = tl.maximum(tl.max(log_sum, axis=0), _LOWEST)
    weights = tl.exp2(log_sum - maximum)
    total = tl.sum(weights, axis=0)

    dims = tl.arange(0, BLOCK_D)
    # What has no weight was never written.
    inside = (log_sum > _NO_WEIGHT)[:, None] & (dims < HEAD_DIM)[None, :]
    part = tl.load(parts + place[:, None] * HEAD_DIM + dims[None, :], mask=inside, other=0.0)
    mixed = tl.sum(part * weights[:, None], axis=0) / tl.where(total > 0, total, 1.0)
    row += first_token * HEADS
    tl.store(out + row * HEAD_DIM + dims, mixed.to(out.dtype.element_ty), mask=dims < HEAD_DIM)
