"""A decode step's attention over a paged KV cache, from the packed projection to the mixed values.

A program owns one sequence, one KV head and a segment of the keys (Flash-Decoding, Dao et al. 2023). It
norms and rotates the query heads that share the KV head, packed as the rows of one matrix tile so that
grouped-query attention fills the tensor cores, and walks over the keys in tiles of BLOCK_N tokens with the
running softmax of FlashAttention (Dao et al. 2022). The new token's key and value come from the projection,
not from the cache: the program of the last segment starts its softmax with them and writes them to the cache,
so that nobody waits for that write.

Long sequences are cut into as many segments as are worth it, up to the grid's third axis, each by its own
length: the grid is the same whatever the lengths are. The program that ends last joins the segments, in their
order, so that the result does not depend on which that is.

Lengths and block tables were there before the step's first layer began, so a program looks at them before it
waits for the kernel ahead.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
import triton
import triton.language as tl

from gpu_worker.kernels.attention_steps import LOWEST, attend_paged, join_segments, load_rotated
from gpu_worker.kernels.overlap import let_next_kernel_start, wait_for_kernel_ahead

# Segments whose parts are in flight at once when they are joined.
_AT_ONCE = tl.constexpr(8)


@triton.jit
def _segment_of(first_tile, end_tile, segment, MIN_TILES: tl.constexpr):
    """The tiles of a segment, and how many segments there are; none is empty."""
    all_tiles = end_tile - first_tile
    most = tl.maximum(1, tl.minimum(tl.num_programs(2), all_tiles // MIN_TILES))
    tiles = tl.maximum(1, tl.cdiv(all_tiles, most))
    first_tile += segment * tiles
    return first_tile, tl.minimum(end_tile, first_tile + tiles), tl.maximum(1, tl.cdiv(all_tiles, tiles))


@triton.jit
def _add_token(q_tile, key, value, state, scale):
    """One more token into the running softmax; key and value are [1, BLOCK_D]."""
    maximum, total, mixed = state
    score = tl.sum(q_tile.to(tl.float32) * key.to(tl.float32), axis=1) * scale
    new_maximum = tl.maximum(maximum, score)
    shrink = tl.exp2(maximum - new_maximum)
    weight = tl.exp2(score - new_maximum)
    mixed = mixed * shrink[:, None] + value.to(tl.float32) * weight[:, None]
    return new_maximum, total * shrink + weight, mixed


@triton.jit
def _store_part(parts, log_sums, part, mixed, log_sum, GROUP_ROWS: tl.constexpr):
    """Leaves what a segment found for the program that joins them."""
    rows = tl.arange(0, mixed.shape[0])
    dims = tl.arange(0, mixed.shape[1])
    place = part * GROUP_ROWS + rows
    exist = rows < GROUP_ROWS
    at = place.to(tl.int64)[:, None] * mixed.shape[1] + dims[None, :]
    tl.store(parts + at, mixed, mask=exist[:, None])
    tl.store(log_sums + place, log_sum, mask=exist)


@triton.jit(do_not_specialize=["table_stride", "window"])
def decode_attention_kernel(
    out,  # [num_seqs, KV_HEADS * GROUP, HEAD_DIM] contiguous
    heads,  # [num_seqs, KV_HEADS * (GROUP + 2), HEAD_DIM]: queries, keys, values; the first stride free
    q_norm,  # [HEAD_DIM], if NORM
    k_norm,
    cos_sin,  # [max_positions, HEAD_DIM] float32: cosines, then sines
    k_cache,  # [num_blocks, BLOCK_SIZE, KV_HEADS, HEAD_DIM] contiguous
    v_cache,
    block_tables,  # [num_seqs, max_blocks] int32
    seq_lens,  # [num_seqs] int32, with the new token; 0 is padding: zeros come out
    slots,  # [num_seqs] int32: where the new token is cached, -1: not at all
    counts,  # [1] int32: how many sequences there are; programs may be more
    parts,  # [num_seqs, KV_HEADS, segments, GROUP_ROWS, BLOCK_D] float32, room for what segments compute
    log_sums,  # [num_seqs, KV_HEADS, segments, GROUP_ROWS] float32, likewise
    arrivals,  # [num_seqs * KV_HEADS] int32, all 0, and 0 again afterwards
    shared_tokens,  # [num_seqs] int32, if SHARED: tokens at the beginning that shared_attention has seen to
    shared_parts,  # [num_seqs, KV_HEADS, SHARED, GROUP_ROWS, BLOCK_D] float32: what it found
    shared_log_sums,  # [num_seqs, KV_HEADS, SHARED, GROUP_ROWS] float32, likewise
    heads_stride,
    table_stride,
    scale,  # of the scores, times log2(e)
    window,  # in tokens, if WINDOWED
    eps,  # of the norms
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    GROUP_ROWS: tl.constexpr,  # the next power of two
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    MIN_TILES: tl.constexpr,  # that a segment should have
    NORM: tl.constexpr,
    WINDOWED: tl.constexpr,
    SPLIT: tl.constexpr,
    SHARED: tl.constexpr,  # segments that shared_attention made, 0 if nothing is shared
    OVERLAP: tl.constexpr,
):
    let_next_kernel_start(OVERLAP)
    seq = tl.program_id(0)
    kv_head = tl.program_id(1)
    segment = tl.program_id(2)
    if seq >= tl.load(counts):
        wait_for_kernel_ahead(OVERLAP)
        return
    position = tl.load(seq_lens + seq) - 1
    rows = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    # Rows past the group repeat its last head, and are not stored.
    q_heads = kv_head * GROUP + tl.minimum(rows, GROUP - 1)
    out_place = (seq.to(tl.int64) * (KV_HEADS * GROUP) + q_heads)[:, None] * HEAD_DIM + dims[None, :]
    inside = (rows < GROUP)[:, None] & (dims < HEAD_DIM)[None, :]
    if position < 0:
        wait_for_kernel_ahead(OVERLAP)
        if segment == 0:
            tl.store(out + out_place, tl.zeros([BLOCK_M, BLOCK_D], out.dtype.element_ty), mask=inside)
        return

    first_key = 0
    if WINDOWED:
        first_key = tl.maximum(0, position - window + 1)
    if SHARED > 0:
        first_key = tl.load(shared_tokens + seq)
    first_tile, end_tile = first_key // BLOCK_N, tl.cdiv(position, BLOCK_N)
    num_segments = 1
    if SPLIT:
        first_tile, end_tile, num_segments = _segment_of(first_tile, end_tile, segment, MIN_TILES)
        if segment >= num_segments:
            wait_for_kernel_ahead(OVERLAP)
            return

    wait_for_kernel_ahead(OVERLAP)
    token = heads + seq.to(tl.int64) * heads_stride
    angles = cos_sin + position.to(tl.int64) * HEAD_DIM
    q_tile = load_rotated(token + q_heads[:, None] * HEAD_DIM, q_norm, angles, eps, HEAD_DIM, BLOCK_D, NORM)
    maximum = tl.full([BLOCK_M], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    mixed = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    cell = seq * KV_HEADS + kv_head
    if SHARED > 0:  # noqa: SIM102 - this one is decided by the compiler
        if (segment == 0) & (first_key > 0):
            group_rows = tl.minimum(rows, GROUP_ROWS - 1)
            maximum, mixed = join_segments(
                shared_parts, shared_log_sums, cell * SHARED, SHARED, group_rows, GROUP_ROWS, BLOCK_D, 1
            )
            total += 1.0
    if segment == num_segments - 1:
        own_key = token + (KV_HEADS * GROUP + kv_head) * HEAD_DIM + tl.arange(0, 1)[:, None]
        key = load_rotated(own_key, k_norm, angles, eps, HEAD_DIM, BLOCK_D, NORM)
        own_value = own_key + KV_HEADS * HEAD_DIM + dims[None, :]
        value = tl.load(own_value, mask=(dims < HEAD_DIM)[None, :], other=0.0)
        slot = tl.load(slots + seq).to(tl.int64)
        if slot >= 0:
            cached = (slot * KV_HEADS + kv_head) * HEAD_DIM + dims[None, :]
            tl.store(k_cache + cached, key, mask=(dims < HEAD_DIM)[None, :])
            tl.store(v_cache + cached, value, mask=(dims < HEAD_DIM)[None, :])
        maximum, total, mixed = _add_token(q_tile, key, value, (maximum, total, mixed), scale)

    table = block_tables + seq.to(tl.int64) * table_stride
    maximum, total, mixed = attend_paged(
        q_tile,
        k_cache,
        v_cache,
        table,
        first_tile,
        end_tile,
        position,
        window,
        kv_head,
        (maximum, total, mixed),
        scale,
        KV_HEADS,
        HEAD_DIM,
        BLOCK_SIZE,
        BLOCK_N,
        True,
        WINDOWED,
    )

    # Only a segment of keys that the window leaves out can have seen nothing.
    seen = total > 0
    total = tl.where(seen, total, 1.0)
    mixed = mixed / total[:, None]
    if num_segments == 1:
        tl.store(out + out_place, mixed.to(out.dtype.element_ty), mask=inside)
        return
    log_sum = tl.where(seen, maximum + tl.log2(total), LOWEST)
    first_part = cell * tl.num_programs(2)
    _store_part(parts, log_sums, first_part + segment, mixed, log_sum, GROUP_ROWS)
    tl.debug_barrier()  # all of the program's threads have stored
    arrived = tl.atomic_add(arrivals + cell, 1, sem="acq_rel")
    if arrived == num_segments - 1:
        tl.store(arrivals + cell, 0)
        group = tl.arange(0, GROUP_ROWS)
        _, joined = join_segments(
            parts, log_sums, first_part, num_segments, group, GROUP_ROWS, BLOCK_D, _AT_ONCE
        )
        out_heads = (seq.to(tl.int64) * KV_HEADS + kv_head) * GROUP + group
        exist = (group < GROUP)[:, None] & (dims < HEAD_DIM)[None, :]
        joined_place = out_heads[:, None] * HEAD_DIM + dims[None, :]
        tl.store(out + joined_place, joined.to(out.dtype.element_ty), mask=exist)
