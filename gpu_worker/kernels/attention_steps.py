"""What the attention kernels are made of: the running softmax, loading heads and keys, joining segments."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
import triton
import triton.language as tl

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


@triton.jit
def load_log_sums(log_sums, first, segments, count, rows, GROUP_ROWS: tl.constexpr):
    """Where the parts of `segments` are, and the logarithms of their sums: [segments, rows] each."""
    places = (first + segments)[:, None] * GROUP_ROWS + rows[None, :]
    # Other multiprocessors wrote this, and the parts: not to be taken from this one's own cache.
    exist = (segments < count)[:, None]
    return places, tl.load(log_sums + places, mask=exist, other=LOWEST, cache_modifier=".cg")


@triton.jit
def join_segments(
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
    _, log_sum = load_log_sums(log_sums, first, everyone, count, rows, GROUP_ROWS)
    maximum = tl.max(log_sum, axis=0)
    total = tl.sum(tl.exp2(log_sum - maximum[None, :]), axis=0)
    mixed = tl.zeros([rows.shape[0], BLOCK_D], tl.float32)
    for start in range(0, count, AT_ONCE):
        segments = start + tl.arange(0, AT_ONCE)
        places, some = load_log_sums(log_sums, first, segments, count, rows, GROUP_ROWS)
        weights = tl.exp2(some - maximum[None, :])
        at = places.to(tl.int64)[:, :, None] * BLOCK_D + tl.arange(0, BLOCK_D)[None, None, :]
        exist = (segments < count)[:, None, None]
        part = tl.load(parts + at, mask=exist, other=0.0, cache_modifier=".cg")
        mixed += tl.sum(part * weights[:, :, None], axis=0)
    return maximum + tl.log2(total), mixed / total[:, None]


@triton.jit
def _key_places(
    table,
    tile,
    end,
    kv_head,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Where this head's keys of the tile begin in the cache, those before `end`: [BLOCK_N] int64."""
    keys = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    # Behind the last key the table and the cache may hold anything: that key again, to be masked.
    readable = tl.minimum(keys, end - 1)
    blocks = tl.load(table + readable // BLOCK_SIZE).to(tl.int64)
    return ((blocks * BLOCK_SIZE + readable % BLOCK_SIZE) * KV_HEADS + kv_head) * HEAD_DIM


@triton.jit
def attend_paged(
    q_tile,  # [rows, BLOCK_D], rotated
    k_cache,
    v_cache,
    table,  # the sequence's row of the block tables
    first_tile,
    end_tile,
    end,  # keys at this place and later are not seen, if MASK; else all tiles are whole
    window,  # nor are those so many tokens before it, if WINDOWED
    kv_head,
    state,  # see softmax_step
    scale,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASK: tl.constexpr,
    WINDOWED: tl.constexpr,
):
    """The running softmax over tiles first_tile .. end_tile of a sequence's keys in the paged cache."""
    dims = tl.arange(0, q_tile.shape[1])[None, :]
    maximum, total, mixed = state
    for tile in range(first_tile, end_tile):
        places = _key_places(table, tile, end, kv_head, KV_HEADS, HEAD_DIM, BLOCK_SIZE, BLOCK_N)
        place = places[:, None] + dims
        k_tile = tl.load(k_cache + place, mask=dims < HEAD_DIM, other=0.0)
        v_tile = tl.load(v_cache + place, mask=dims < HEAD_DIM, other=0.0)
        keys = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        visible = keys < end
        if WINDOWED:
            visible &= keys > end - window
        state = (maximum, total, mixed)
        maximum, total, mixed = softmax_step(q_tile, k_tile, v_tile, visible[None, :], state, scale, MASK)
    return maximum, total, mixed
