"""Causal attention of prefill chunks over keys that lie in a row (see gather_keys).

A program owns one query block: BLOCK_Q consecutive tokens of one sequence times all GROUP query heads that
share a KV head, packed as the BLOCK_M rows of one matrix tile:

    row     0   1   ...  GROUP-1  GROUP  ...  BLOCK_Q*GROUP-1  ...  BLOCK_M-1
    token   t   t   ...  t        t+1    ...  t+BLOCK_Q-1      none
    head    0   1   ...  GROUP-1  0      ...  GROUP-1          none

It walks over its keys in tiles of BLOCK_N tokens, which the copy engine brings (tensor descriptors, TMA),
with the running softmax of FlashAttention (Dao et al. 2022); only the last tiles have to be masked. The third
grid axis cuts the keys into segments that run in parallel (Flash-Decoding, Dao et al. 2023) where there are
too few query blocks to fill the device; `attention_reduce` then joins them.

The grid needs no device data: sequence s begins at query block

    first_block(s) = (tokens before s + s * (BLOCK_Q - 1)) // BLOCK_Q

which leaves it at least ceil(its tokens / BLOCK_Q) blocks before the next begins, and never falls as s grows,
so that a program finds its sequence by binary search. Blocks left over return at once. The last blocks, which
see the most keys, come first, so that no long one is left to the end.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
import triton
import triton.language as tl

from gpu_worker.kernels.attention_steps import LOWEST, MASKED, softmax_step
from gpu_worker.kernels.overlap import let_next_kernel_start, wait_for_kernel_ahead


@triton.jit
def first_block_of(query_start, seq, first_seq, BLOCK_Q: tl.constexpr):
    """The query block that `seq` begins at, counted from first_seq's. Those before have one token each."""
    tokens_before = tl.load(query_start + seq) - first_seq
    return (tokens_before + (seq - first_seq) * (BLOCK_Q - 1)) // BLOCK_Q


@triton.jit
def find_sequence(query_start, block, first_seq, end_seq, BLOCK_Q: tl.constexpr):
    """The last sequence that begins at or before query block `block`."""
    low = first_seq
    high = end_seq
    while high - low > 1:
        middle = (low + high) // 2
        begins_later = first_block_of(query_start, middle, first_seq, BLOCK_Q) > block
        low = tl.where(begins_later, low, middle)
        high = tl.where(begins_later, middle, high)
    return low


@triton.jit
def _attend(
    q_tile,  # [BLOCK_M, BLOCK_D]
    keys,  # descriptors of [KV_HEADS * num_keys, HEAD_DIM], in tiles of [BLOCK_N, BLOCK_D]
    values,
    first_row,  # of the sequence's keys of this head
    positions,  # [BLOCK_M]: of the queries in their sequence
    first_tile,
    masked_tile,  # tiles from here on have keys that not every query sees
    end_tile,
    key_end,
    scale,
    window,
    BLOCK_N: tl.constexpr,
    WINDOWED: tl.constexpr,
):
    """The running softmax over tiles first_tile .. end_tile: base-2 maxima, sums, and the weighted values."""
    maximum = tl.full([q_tile.shape[0]], LOWEST, tl.float32)
    total = tl.zeros([q_tile.shape[0]], tl.float32)
    mixed = tl.zeros(q_tile.shape, tl.float32)
    for tile in range(first_tile, tl.minimum(masked_tile, end_tile)):
        row = first_row + tile * BLOCK_N
        k_tile = keys.load([row, 0])
        v_tile = values.load([row, 0])
        state = (maximum, total, mixed)
        maximum, total, mixed = softmax_step(q_tile, k_tile, v_tile, None, state, scale, False)
    for tile in range(tl.maximum(masked_tile, first_tile), end_tile):
        row = first_row + tile * BLOCK_N
        at = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        k_tile = keys.load([row, 0])
        v_tile = values.load([row, 0])
        # Behind the last key lies another sequence, or what was never written: not even 0 times that.
        v_tile = tl.where((at < key_end)[:, None], v_tile, tl.zeros_like(v_tile))
        visible = at[None, :] <= positions[:, None]
        if WINDOWED:
            visible &= at[None, :] > positions[:, None] - window
        state = (maximum, total, mixed)
        maximum, total, mixed = softmax_step(q_tile, k_tile, v_tile, visible, state, scale, True)
    return maximum, total, mixed


@triton.jit(do_not_specialize=["num_keys", "window"])
def prefill_attention_kernel(
    out,  # [num_tokens, HEADS, HEAD_DIM]; if SPLIT [num_tokens, HEADS, segments, HEAD_DIM] float32
    log_sums,  # if SPLIT [num_tokens, HEADS, segments] float32, in base 2
    q,  # [num_tokens, HEADS, HEAD_DIM], rotated, the first stride free
    keys,  # descriptor of [KV_HEADS * num_keys, HEAD_DIM]
    values,
    key_starts,  # [num_chunks] int32: where the keys of each sequence begin among num_keys
    query_start,  # [num_seqs + 1] int32
    seq_lens,  # [num_seqs] int32
    counts,  # [2] int32: the first sequence of the launch, and the end; those before have one token each
    num_keys,
    q_stride,
    scale,  # of the scores, times log2(e)
    window,  # in tokens, if WINDOWED
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WINDOWED: tl.constexpr,
    SPLIT: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    let_next_kernel_start(OVERLAP)
    wait_for_kernel_ahead(OVERLAP)
    query_block = tl.num_programs(0) - 1 - tl.program_id(0)
    first_seq = tl.load(counts)
    end_seq = tl.load(counts + 1)
    seq = find_sequence(query_start, query_block, first_seq, end_seq, BLOCK_Q)
    first_token = tl.load(query_start + seq)
    query_len = tl.load(query_start + seq + 1) - first_token
    first_query = (query_block - first_block_of(query_start, seq, first_seq, BLOCK_Q)) * BLOCK_Q
    if first_query >= query_len:
        return
    query_end = tl.minimum(first_query + BLOCK_Q, query_len)
    context = tl.load(seq_lens + seq) - query_len

    kv_head = tl.program_id(1)
    rows = tl.arange(0, BLOCK_M)
    queries = first_query + rows // GROUP
    heads = kv_head * GROUP + rows % GROUP
    tokens = (first_token + queries).to(tl.int64)
    dims = tl.arange(0, BLOCK_D)[None, :]
    inside = (queries < query_end)[:, None] & (dims < HEAD_DIM)
    q_tile = tl.load(q + (tokens * q_stride + heads * HEAD_DIM)[:, None] + dims, mask=inside, other=0.0)

    # All queries of the block see the keys up to the first query's own.
    first_tile = 0
    masked_tile = (context + first_query + 1) // BLOCK_N
    if WINDOWED:
        first_tile = tl.maximum(0, context + first_query - window + 1) // BLOCK_N
        masked_tile = first_tile
    end_tile = tl.cdiv(context + query_end, BLOCK_N)
    if SPLIT:
        tiles = tl.cdiv(end_tile - first_tile, tl.num_programs(2))
        first_tile += tl.program_id(2) * tiles
        end_tile = tl.minimum(end_tile, first_tile + tiles)
    maximum, total, mixed = _attend(
        q_tile,
        keys,
        values,
        kv_head * num_keys + tl.load(key_starts + seq - first_seq),
        context + queries,
        first_tile,
        masked_tile,
        end_tile,
        context + query_end,
        scale,
        window,
        BLOCK_N,
        WINDOWED,
    )

    # Rows that saw no key, of padding or of a segment without tiles, are zeros.
    seen = total > 0
    total = tl.where(seen, total, 1.0)
    place = tokens * (KV_HEADS * GROUP) + heads
    if SPLIT:
        place = place * tl.num_programs(2) + tl.program_id(2)
        log_sum = tl.where(seen, maximum + tl.log2(total), MASKED)
        tl.store(log_sums + place, log_sum, mask=queries < query_end)
        inside &= seen[:, None]  # what has no weight is not read
    mixed /= total[:, None]
    tl.store(out + place[:, None] * HEAD_DIM + dims, mixed.to(out.dtype.element_ty), mask=inside)
