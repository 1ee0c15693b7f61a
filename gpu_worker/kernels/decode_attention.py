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

from gpu_worker.kernels.overlap import let_next_kernel_start, wait_for_kernel_ahead

# Where the running maximum begins. Finite, so that a row that has seen nothing but masked scores, which are
# -inf, never computes inf - inf.
LOWEST = tl.constexpr(-1.0e30)
MASKED = tl.constexpr(float("-inf"))
# The most segments there can be: the last one to end reads all their sums at once.
MAX_SEGMENTS = tl.constexpr(32)


@triton.jit
def softmax_step(q_tile, k_tile, v_tile, visible, state, scale, MASK: tl.constexpr):
    """One tile of keys into `state`: base-2 maxima, sums and weighted values of the rows of q_tile."""
    maximum, total, mixed = state
    scores = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee")
    if MASK:
        scores = tl.where(visible, scores, MASKED)
    new_maximum = tl.maximum(maximum, tl.max(scores, axis=1) * scale)
    weights = tl.exp2(scores * scale - new_maximum[:, None])
    shrink = tl.exp2(maximum - new_maximum)
    total = total * shrink + tl.sum(weights, axis=1)
    mixed = tl.dot(weights.to(v_tile.dtype), v_tile, mixed * shrink[:, None], input_precision="ieee")
    return new_maximum, total, mixed


@triton.jit
def load_rotated(
    heads, norm_weight, cos_sin, eps, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, NORM: tl.constexpr
):
    """[n, BLOCK_D] of the heads at pointers `heads` [n, 1]: normed if NORM, rotated by the angles at cos_sin.

    cos_sin: a pointer for all of them, or pointers [n, 1].
    """
    dims = tl.arange(0, BLOCK_D)
    half: tl.constexpr = HEAD_DIM // 2
    inside = dims < HEAD_DIM
    partners = tl.where(dims < half, dims + half, dims - half)
    own = tl.load(heads + dims[None, :], mask=inside[None, :], other=0.0).to(tl.float32)
    partner = tl.load(heads + partners[None, :], mask=inside[None, :], other=0.0).to(tl.float32)
    if NORM:
        scale = tl.rsqrt(tl.sum(own * own, axis=1) / HEAD_DIM + eps)[:, None]
        weights = tl.load(norm_weight + dims, mask=inside, other=0.0).to(tl.float32)
        own = own * scale * weights[None, :]
        weights = tl.load(norm_weight + partners, mask=inside, other=0.0).to(tl.float32)
        partner = partner * scale * weights[None, :]
        # Rounded as a norm that stands alone would store them.
        own = own.to(heads.dtype.element_ty).to(tl.float32)
        partner = partner.to(heads.dtype.element_ty).to(tl.float32)
    angles = cos_sin + (dims % half)[None, :]
    cos = tl.load(angles, mask=inside[None, :], other=0.0)
    sin = tl.load(angles + half, mask=inside[None, :], other=0.0)
    signed = tl.where((dims < half)[None, :], -sin, sin)
    return (own * cos + partner * signed).to(heads.dtype.element_ty)


# Segments whose parts are in flight at once when they are joined.
_JOINED = tl.constexpr(8)


@triton.jit
def _load_log_sums(log_sums, first, segments, count, rows, GROUP_ROWS: tl.constexpr):
    """Where the parts of `segments` are, and the logarithms of their sums: [segments, rows] each."""
    places = (first + segments)[:, None] * GROUP_ROWS + rows[None, :]
    # Other multiprocessors wrote this, and the parts: not to be taken from this one's own cache.
    exist = (segments < count)[:, None]
    return places, tl.load(log_sums + places, mask=exist, other=LOWEST, cache_modifier=".cg")


@triton.jit
def _join(
    parts,
    log_sums,
    first,
    count,
    rows,
    GROUP_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """The softmax over `count` segments, of what each stored of its own.

    Base-2 logarithms of the sums [rows], and the weighted values [rows, BLOCK_D].
    """
    everyone = tl.arange(0, MAX_SEGMENTS)
    _, log_sum = _load_log_sums(log_sums, first, everyone, count, rows, GROUP_ROWS)
    maximum = tl.max(log_sum, axis=0)
    total = tl.sum(tl.exp2(log_sum - maximum[None, :]), axis=0)
    mixed = tl.zeros([rows.shape[0], BLOCK_D], tl.float32)
    for start in range(0, count, AT_ONCE):
        segments = start + tl.arange(0, AT_ONCE)
        places, some = _load_log_sums(log_sums, first, segments, count, rows, GROUP_ROWS)
        weights = tl.exp2(some - maximum[None, :])
        at = places.to(tl.int64)[:, :, None] * BLOCK_D + tl.arange(0, BLOCK_D)[None, None, :]
        exist = (segments < count)[:, None, None]
        part = tl.load(parts + at, mask=exist, other=0.0, cache_modifier=".cg")
        mixed += tl.sum(part * weights[:, :, None], axis=0)
    return maximum + tl.log2(total), mixed / total[:, None]


@triton.jit
def key_places(
    table,
    tile,
    position,
    kv_head,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Where this head's keys of the tile begin in the cache, those before `position`: [BLOCK_N] int64."""
    keys = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    # Behind the last key the table and the cache may hold anything: that key again, to be masked.
    readable = tl.minimum(keys, position - 1)
    blocks = tl.load(table + readable // BLOCK_SIZE).to(tl.int64)
    return ((blocks * BLOCK_SIZE + readable % BLOCK_SIZE) * KV_HEADS + kv_head) * HEAD_DIM


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
    first_tile = first_key // BLOCK_N
    if SHARED > 0:
        first_tile = tl.load(shared_tokens + seq) // BLOCK_N
    end_tile = tl.cdiv(position, BLOCK_N)
    num_segments = 1
    if SPLIT:
        most = tl.maximum(1, tl.minimum(tl.num_programs(2), (end_tile - first_tile) // MIN_TILES))
        tiles = tl.maximum(1, tl.cdiv(end_tile - first_tile, most))
        num_segments = tl.maximum(1, tl.cdiv(end_tile - first_tile, tiles))
        if segment >= num_segments:
            wait_for_kernel_ahead(OVERLAP)
            return
        first_tile += segment * tiles
        end_tile = tl.minimum(end_tile, first_tile + tiles)

    table = block_tables + seq.to(tl.int64) * table_stride
    wait_for_kernel_ahead(OVERLAP)
    token = heads + seq.to(tl.int64) * heads_stride
    angles = cos_sin + position.to(tl.int64) * HEAD_DIM
    q_tile = load_rotated(token + q_heads[:, None] * HEAD_DIM, q_norm, angles, eps, HEAD_DIM, BLOCK_D, NORM)
    maximum = tl.full([BLOCK_M], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    mixed = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if SHARED > 0:  # noqa: SIM102 - this one is decided by the compiler
        if (segment == 0) & (tl.load(shared_tokens + seq) > 0):
            cells = (seq * KV_HEADS + kv_head) * SHARED
            group_rows = tl.minimum(rows, GROUP_ROWS - 1)
            maximum, mixed = _join(
                shared_parts, shared_log_sums, cells, SHARED, group_rows, GROUP_ROWS, BLOCK_D, 1
            )
            total += 1.0
    if segment == num_segments - 1:
        one = tl.arange(0, 1)[:, None]
        own_key = token + (KV_HEADS * GROUP + kv_head) * HEAD_DIM + one
        key = load_rotated(own_key, k_norm, angles, eps, HEAD_DIM, BLOCK_D, NORM)
        exists = dims[None, :] < HEAD_DIM
        value = tl.load(own_key + KV_HEADS * HEAD_DIM + dims[None, :], mask=exists, other=0.0)
        slot = tl.load(slots + seq).to(tl.int64)
        cached = (slot * KV_HEADS + kv_head) * HEAD_DIM + one + dims[None, :]
        if slot >= 0:
            tl.store(k_cache + cached, key, mask=exists)
            tl.store(v_cache + cached, value, mask=exists)
        score = tl.sum(q_tile.to(tl.float32) * key.to(tl.float32), axis=1) * scale
        new_maximum = tl.maximum(maximum, score)
        shrink = tl.exp2(maximum - new_maximum)
        weight = tl.exp2(score - new_maximum)
        total = total * shrink + weight
        mixed = mixed * shrink[:, None] + value.to(tl.float32) * weight[:, None]
        maximum = new_maximum

    for tile in range(first_tile, end_tile):
        keys = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        places = key_places(table, tile, position, kv_head, KV_HEADS, HEAD_DIM, BLOCK_SIZE, BLOCK_N)
        place = places[:, None] + dims[None, :]
        k_tile = tl.load(k_cache + place, mask=(dims < HEAD_DIM)[None, :], other=0.0)
        v_tile = tl.load(v_cache + place, mask=(dims < HEAD_DIM)[None, :], other=0.0)
        visible = keys < position
        if WINDOWED:
            visible &= keys > position - window
        state = (maximum, total, mixed)
        maximum, total, mixed = softmax_step(q_tile, k_tile, v_tile, visible[None, :], state, scale, True)

    # Only a segment of keys that the window leaves out can have seen nothing.
    seen = total > 0
    total = tl.where(seen, total, 1.0)
    mixed = mixed / total[:, None]
    if num_segments == 1:
        tl.store(out + out_place, mixed.to(out.dtype.element_ty), mask=inside)
        return
    cell = seq * KV_HEADS + kv_head
    first = cell * tl.num_programs(2)
    own_place = (first + segment) * GROUP_ROWS + rows
    stored = rows < GROUP_ROWS
    tl.store(parts + own_place.to(tl.int64)[:, None] * BLOCK_D + dims[None, :], mixed, mask=stored[:, None])
    tl.store(log_sums + own_place, tl.where(seen, maximum + tl.log2(total), LOWEST), mask=stored)
    tl.debug_barrier()  # all of the program's threads have stored
    arrived = tl.atomic_add(arrivals + cell, 1, sem="acq_rel")
    if arrived == num_segments - 1:
        tl.store(arrivals + cell, 0)
        group = tl.arange(0, GROUP_ROWS)
        _, joined = _join(parts, log_sums, first, num_segments, group, GROUP_ROWS, BLOCK_D, _JOINED)
        out_heads = (seq.to(tl.int64) * KV_HEADS + kv_head) * GROUP + group
        exist = (group < GROUP)[:, None] & (dims < HEAD_DIM)[None, :]
        joined_place = out_heads[:, None] * HEAD_DIM + dims[None, :]
        tl.store(out + joined_place, joined.to(out.dtype.element_ty), mask=exist)
