"""Rotary position embedding (Su et al. 2021) of queries and keys, and the write to the paged cache."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
import triton
import triton.language as tl

from gpu_worker.kernels.overlap import let_next_kernel_start, wait_for_kernel_ahead


@triton.jit
def rotate_heads(
    x,
    norm_weight,
    cos,
    sin,
    eps,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    NORM: tl.constexpr,
):
    """Norm if NORM, and rotate, the heads [HEADS, HEAD_DIM] at `x` in place.

    Returns both halves as stored, their place in [HEADS, HEAD_DIM] (of the first half), and which are real.
    """
    half: tl.constexpr = HEAD_DIM // 2
    heads = tl.arange(0, BLOCK_HEADS)[:, None]
    dims = tl.arange(0, BLOCK_HALF)[None, :]
    place = heads * HEAD_DIM + dims
    inside = (heads < HEADS) & (dims < half)
    first = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(x + place + half, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        scale = tl.rsqrt(tl.sum(first * first + second * second, axis=1) / HEAD_DIM + eps)[:, None]
        weights = tl.load(norm_weight + dims, mask=dims < half, other=0.0).to(tl.float32)
        first = first * scale * weights
        weights = tl.load(norm_weight + half + dims, mask=dims < half, other=0.0).to(tl.float32)
        second = second * scale * weights
        # Rounded as a norm that stands alone would store them.
        first = first.to(x.dtype.element_ty).to(tl.float32)
        second = second.to(x.dtype.element_ty).to(tl.float32)
    rotated_first = (first * cos - second * sin).to(x.dtype.element_ty)
    rotated_second = (second * cos + first * sin).to(x.dtype.element_ty)
    tl.store(x + place, rotated_first, mask=inside)
    tl.store(x + place + half, rotated_second, mask=inside)
    return rotated_first, rotated_second, place, inside


@triton.jit
def rope_cache_kernel(
    heads,  # [num_tokens, HEADS + 2 * KV_HEADS, HEAD_DIM]: queries, keys, values; the first stride free
    q_norm,  # [HEAD_DIM], if NORM
    k_norm,
    cos_sin,  # [max_positions, HEAD_DIM] float32: cosines, then sines
    k_cache,  # [num_slots, KV_HEADS, HEAD_DIM] contiguous
    v_cache,
    positions,  # [num_tokens] int32
    slots,  # [num_tokens] int32, -1: not to be written
    counts,  # [1] int32: how many tokens at the beginning are left alone
    heads_stride,
    eps,  # of the norms
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_KV_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    NORM: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """A program norms and rotates one token's queries and keys in place, and caches its keys and values."""
    let_next_kernel_start(OVERLAP)
    wait_for_kernel_ahead(OVERLAP)
    nth = tl.program_id(0).to(tl.int64)
    if nth < tl.load(counts):
        return
    position = tl.load(positions + nth)
    slot = tl.load(slots + nth).to(tl.int64)
    dims = tl.arange(0, BLOCK_HALF)
    angles = cos_sin + position.to(tl.int64) * HEAD_DIM + dims
    cos = tl.load(angles, mask=dims < HEAD_DIM // 2, other=0.0)[None, :]
    sin = tl.load(angles + HEAD_DIM // 2, mask=dims < HEAD_DIM // 2, other=0.0)[None, :]

    token = heads + nth * heads_stride
    rotate_heads(token, q_norm, cos, sin, eps, HEADS, HEAD_DIM, BLOCK_HEADS, BLOCK_HALF, NORM)
    keys = token + HEADS * HEAD_DIM
    k_first, k_second, place, inside = rotate_heads(
        keys, k_norm, cos, sin, eps, KV_HEADS, HEAD_DIM, BLOCK_KV_HEADS, BLOCK_HALF, NORM
    )
    if slot >= 0:
        values = keys + KV_HEADS * HEAD_DIM + place
        v_first = tl.load(values, mask=inside)
        v_second = tl.load(values + HEAD_DIM // 2, mask=inside)
        cached = slot * (KV_HEADS * HEAD_DIM) + place
        tl.store(k_cache + cached, k_first, mask=inside)
        tl.store(k_cache + cached + HEAD_DIM // 2, k_second, mask=inside)
        tl.store(v_cache + cached, v_first, mask=inside)
        tl.store(v_cache + cached + HEAD_DIM // 2, v_second, mask=inside)
