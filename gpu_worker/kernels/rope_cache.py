"""Rotary position embedding (Su et al. 2021) of queries and keys, and the write to the paged cache."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
import triton
import triton.language as tl


@triton.jit
def rotate_heads(
    x,
    cos,
    sin,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
):
    """Rotate the heads [HEADS, HEAD_DIM] at `x` in place.

    Returns both halves as stored, their place in [HEADS, HEAD_DIM] (of the first half), and which are real.
    """
    heads = tl.arange(0, BLOCK_HEADS)[:, None]
    dims = tl.arange(0, BLOCK_HALF)[None, :]
    place = heads * HEAD_DIM + dims
    inside = (heads < HEADS) & (dims < HEAD_DIM // 2)
    first = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(x + place + HEAD_DIM // 2, mask=inside, other=0.0).to(tl.float32)
    rotated_first = (first * cos - second * sin).to(x.dtype.element_ty)
    rotated_second = (second * cos + first * sin).to(x.dtype.element_ty)
    tl.store(x + place, rotated_first, mask=inside)
    tl.store(x + place + HEAD_DIM // 2, rotated_second, mask=inside)
    return rotated_first, rotated_second, place, inside


@triton.jit
def rope_cache_kernel(
    q,  # [num_tokens, HEADS, HEAD_DIM], the first stride free
    k,  # [num_tokens, KV_HEADS, HEAD_DIM], likewise
    v,  # as k
    cos_sin,  # [max_positions, HEAD_DIM] float32: cosines, then sines
    k_cache,  # [num_slots, KV_HEADS, HEAD_DIM] contiguous
    v_cache,
    positions,  # [num_tokens] int32
    slots,  # [num_tokens] int64, -1: not to be written
    q_stride,
    k_stride,
    v_stride,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_KV_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
):
    """A program rotates one token's heads and writes its key and value."""
    token = tl.program_id(0).to(tl.int64)
    position = tl.load(positions + token)
    slot = tl.load(slots + token)
    dims = tl.arange(0, BLOCK_HALF)
    angles = cos_sin + position.to(tl.int64) * HEAD_DIM + dims
    cos = tl.load(angles, mask=dims < HEAD_DIM // 2, other=0.0)[None, :]
    sin = tl.load(angles + HEAD_DIM // 2, mask=dims < HEAD_DIM // 2, other=0.0)[None, :]

    rotate_heads(q + token * q_stride, cos, sin, HEADS, HEAD_DIM, BLOCK_HEADS, BLOCK_HALF)
    k_first, k_second, place, inside = rotate_heads(
        k + token * k_stride, cos, sin, KV_HEADS, HEAD_DIM, BLOCK_KV_HEADS, BLOCK_HALF
    )
    if slot >= 0:
        values = v + token * v_stride + place
        v_first = tl.load(values, mask=inside)
        v_second = tl.load(values + HEAD_DIM // 2, mask=inside)
        cached = slot * (KV_HEADS * HEAD_DIM) + place
        tl.store(k_cache + cached, k_first, mask=inside)
        tl.store(k_cache + cached + HEAD_DIM // 2, k_second, mask=inside)
        tl.store(v_cache + cached, v_first, mask=inside)
        tl.store(v_cache + cached + HEAD_DIM // 2, v_second, mask=inside)
