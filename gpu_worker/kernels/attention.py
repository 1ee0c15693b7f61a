"""Causal attention over a paged KV cache: prefill chunks and decodes by one kernel.

A program owns one query block: BLOCK_Q consecutive tokens of one sequence times all GROUP query heads that
share a KV head, packed as the BLOCK_M rows of one matrix tile, so that grouped-query attention fills the
tensor cores in decode too:

    row     0   1   ...  GROUP-1  GROUP  ...  BLOCK_Q*GROUP-1  ...  BLOCK_M-1
    token   t   t   ...  t        t+1    ...  t+BLOCK_Q-1      none
    head    0   1   ...  GROUP-1  0      ...  GROUP-1          none

It walks over its keys in tiles of BLOCK_N tokens, gathered through the block table, with the running softmax
of FlashAttention (Dao et al. 2022). The third grid axis cuts the keys into segments that run in parallel
(Flash-Decoding, Dao et al. 2023); `attention_reduce` then joins them.

The grid needs no device data: sequence s begins at query block

    first_block(s) = (tokens before s + s * (BLOCK_Q - 1)) // BLOCK_Q

which leaves it at least ceil(its tokens / BLOCK_Q) blocks before the next begins, and never falls as s grows,
so that a program finds its sequence by binary search. Blocks left over return at once.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
import triton
import triton.language as tl

# Where the running maximum begins. Finite, so that a row that has seen nothing but masked scores, which are
# -inf, never computes inf - inf.
_LOWEST = tl.constexpr(-1.0e30)
_MASKED = tl.constexpr(float("-inf"))


@triton.jit
def first_block_of(query_start, seq, first_seq, BLOCK_Q: tl.constexpr):
    """The query block that `seq` begins at, counted from first_seq's. Those before have one token each."""
    tokens_before = tl.load(query_start + seq) - first_seq
    return (tokens_before + (seq - first_seq) * (BLOCK_Q - 1)) // BLOCK_Q


@triton.jit
def find_sequence(query_start, block, first_seq, end_seq, BLOCK_Q: tl.constexpr):
    """The last sequence that begins at or before query block `block`."""
    low = first_seq
    # Blocks of one token are launched for sequences of one token: they are the same.
    if BLOCK_Q == 1:
        low += block
    else:
        high = end_seq
        while high - low > 1:
            middle = (low + high) // 2
            begins_later = first_block_of(query_start, middle, first_seq, BLOCK_Q) > block
            low = tl.where(begins_later, low, middle)
            high = tl.where(begins_later, middle, high)
    return low


@triton.jit
def segment_tiles(first_key, key_end, BLOCK_N: tl.constexpr, SPLIT: tl.constexpr):
    """The first and the end of this program's tiles, among those that hold keys [first_key, key_end)."""
    first = first_key // BLOCK_N
    end = tl.cdiv(key_end, BLOCK_N)
    if SPLIT:
        tiles = tl.cdiv(end - first, tl.num_programs(2))
        first += tl.program_id(2) * tiles
        end = tl.minimum(end, first + tiles)
    return first, end


@triton.jit
def attend(
    q_tile,  # [BLOCK_M, BLOCK_D]
    k_cache,
    v_cache,
    table,  # the sequence's row of the block tables
    positions,  # [BLOCK_M]: of the queries in their sequence
    first_tile,
    end_tile,
    key_end,
    scale,
    window,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WINDOWED: tl.constexpr,
):
    """The running softmax over tiles first_tile .. end_tile: base-2 maxima, sums, and the weighted values."""
    maximum = tl.full([q_tile.shape[0]], _LOWEST, tl.float32)
    total = tl.zeros([q_tile.shape[0]], tl.float32)
    mixed = tl.zeros(q_tile.shape, tl.float32)
    dims = tl.arange(0, q_tile.shape[1])[None, :]
    head = tl.program_id(1) * HEAD_DIM
    for tile in range(first_tile, end_tile):
        keys = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        # Behind the last key the table and the cache may hold anything: read that key again, masked below.
        readable = tl.minimum(keys, key_end - 1)
        blocks = tl.load(table + readable // BLOCK_SIZE).to(tl.int64)
        slots = blocks * BLOCK_SIZE + readable % BLOCK_SIZE
        place = slots[:, None] * (KV_HEADS * HEAD_DIM) + head + dims
        k_tile = tl.load(k_cache + place, mask=dims < HEAD_DIM, other=0.0)
        v_tile = tl.load(v_cache + place, mask=dims < HEAD_DIM, other=0.0)

        visible = keys[None, :] <= positions[:, None]
        if WINDOWED:
            visible &= keys[None, :] > positions[:, None] - window
        scores = tl.where(visible, tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee"), _MASKED)
        new_maximum = tl.maximum(maximum, tl.max(scores, axis=1) * scale)
        weights = tl.exp2(scores * scale - new_maximum[:, None])
        shrink = tl.exp2(maximum - new_maximum)
        total = total * shrink + tl.sum(weights, axis=1)
        mixed = tl.dot(weights.to(v_tile.dtype), v_tile, mixed * shrink[:, None], input_precision="ieee")
        maximum = new_maximum
    return maximum, total, mixed


@triton.jit(do_not_specialize=["first_seq", "end_seq", "table_stride", "window"])
def attention_kernel(
    out,  # [num_tokens, HEADS, HEAD_DIM]; if SPLIT [tokens of the launch, HEADS, segments, HEAD_DIM] float32
    log_sums,  # if SPLIT [tokens of the launch, HEADS, segments] float32, in base 2
    q,  # [num_tokens, HEADS, HEAD_DIM], the first stride free
    k_cache,  # [num_blocks, BLOCK_SIZE, KV_HEADS, HEAD_DIM] contiguous
    v_cache,
    block_tables,  # [num_seqs, max_blocks] int32
    query_start,  # [num_seqs + 1] int32
    seq_lens,  # [num_seqs] int32
    first_seq,  # the launch is for sequences first_seq .. end_seq; those before have one token each
    end_seq,
    q_stride,
    table_stride,
    scale,  # of the scores, times log2(e)
    window,  # in tokens, if WINDOWED
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WINDOWED: tl.constexpr,
    SPLIT: tl.constexpr,
):
    seq = find_sequence(query_start, tl.program_id(0), first_seq, end_seq, BLOCK_Q)
    first_token = tl.load(query_start + seq)
    query_len = tl.load(query_start + seq + 1) - first_token
    first_query = (tl.program_id(0) - first_block_of(query_start, seq, first_seq, BLOCK_Q)) * BLOCK_Q
    if first_query >= query_len:
        return
    query_end = tl.minimum(first_query + BLOCK_Q, query_len)
    context = tl.load(seq_lens + seq) - query_len

    rows = tl.arange(0, BLOCK_M)
    queries = first_query + rows // GROUP
    heads = tl.program_id(1) * GROUP + rows % GROUP
    tokens = (first_token + queries).to(tl.int64)
    dims = tl.arange(0, BLOCK_D)[None, :]
    inside = (queries < query_end)[:, None] & (dims < HEAD_DIM)
    q_tile = tl.load(q + (tokens * q_stride + heads * HEAD_DIM)[:, None] + dims, mask=inside, other=0.0)

    first_key = 0
    if WINDOWED:
        first_key = tl.maximum(0, context + first_query - window + 1)
    first_tile, end_tile = segment_tiles(first_key, context + query_end, BLOCK_N, SPLIT)
    maximum, total, mixed = attend(
        q_tile,
        k_cache,
        v_cache,
        block_tables + seq.to(tl.int64) * table_stride,
        context + queries,
        first_tile,
        end_tile,
        context + query_end,
        scale,
        window,
        KV_HEADS,
        HEAD_DIM,
        BLOCK_SIZE,
        BLOCK_N,
        WINDOWED,
    )

    # Rows that saw no key, of padding or of a segment without tiles, are zeros.
    seen = total > 0
    total = tl.where(seen, total, 1.0)
    place = tokens * (KV_HEADS * GROUP) + heads
    if SPLIT:
        place = (place - first_seq * (KV_HEADS * GROUP)) * tl.num_programs(2) + tl.program_id(2)
        log_sum = tl.where(seen, maximum + tl.log2(total), _MASKED)
        tl.store(log_sums + place, log_sum, mask=queries < query_end)
        inside &= seen[:, None]  # what has no weight is not read
    mixed /= total[:, None]
    tl.store(out + place[:, None] * HEAD_DIM + dims, mixed.to(out.dtype.element_ty), mask=inside)
