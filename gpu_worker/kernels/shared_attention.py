"""A decode step's attention over keys that several sequences share: read once for all of them.

A program owns a group of sequences, one KV head and a segment of the keys at their common beginning. The
query heads of all members are the rows of one matrix tile:

    row     0       ...  GROUP-1  GROUP   ...  2*GROUP-1  ...
    member  0       ...  0        1       ...  1          ...

What each member's rows give is left to `decode_attention`, which goes on from there with the member's own
keys (as "cascade inference" does; Ye et al. 2024, FlashInfer).
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
import triton
import triton.language as tl

from gpu_worker.kernels.attention_steps import LOWEST, attend_paged, load_rotated
from gpu_worker.kernels.overlap import let_next_kernel_start, wait_for_kernel_ahead


@triton.jit(do_not_specialize=["table_stride"])
def shared_attention_kernel(
    parts,  # [num_seqs, KV_HEADS, segments, GROUP_ROWS, BLOCK_D] float32: each segment's own softmax
    log_sums,  # [num_seqs, KV_HEADS, segments, GROUP_ROWS] float32, in base 2; LOWEST where no keys are
    heads,  # [num_seqs, KV_HEADS * (GROUP + 2), HEAD_DIM]: queries, keys, values; the first stride free
    q_norm,  # [HEAD_DIM], if NORM
    cos_sin,  # [max_positions, HEAD_DIM] float32: cosines, then sines
    k_cache,  # [num_blocks, BLOCK_SIZE, KV_HEADS, HEAD_DIM] contiguous
    v_cache,
    block_tables,  # [num_seqs, max_blocks] int32
    seq_lens,  # [num_seqs] int32, with the new token
    members,  # [groups, MEMBERS] int32: the sequences of each group, -1 for none
    group_tokens,  # [groups] int32: tokens that they share, a multiple of BLOCK_N; 0 for no group
    num_groups,  # [1] int32
    heads_stride,
    table_stride,
    scale,  # of the scores, times log2(e)
    eps,  # of the norm
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    GROUP_ROWS: tl.constexpr,  # the next power of two
    MEMBERS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    MIN_TILES: tl.constexpr,  # that a segment should have
    PROGRAMS: tl.constexpr,  # that fill the device
    NORM: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    let_next_kernel_start(OVERLAP)
    group = tl.program_id(0)
    kv_head = tl.program_id(1)
    segment = tl.program_id(2)
    tokens = tl.load(group_tokens + group)
    if tokens == 0:
        wait_for_kernel_ahead(OVERLAP)
        return
    tiles = tokens // BLOCK_N
    wanted = tl.maximum(1, PROGRAMS // (tl.load(num_groups) * KV_HEADS))
    num_segments = tl.maximum(1, tl.minimum(tl.minimum(wanted, tl.num_programs(2)), tiles // MIN_TILES))
    per_segment = tl.cdiv(tiles, num_segments)
    first_tile = segment * per_segment
    end_tile = tl.minimum(tiles, first_tile + per_segment)

    rows = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    # Rows of no member repeat the first one's, and are not stored.
    nth = tl.minimum(rows // GROUP, MEMBERS - 1)
    seqs = tl.load(members + group * MEMBERS + nth)
    real = (seqs >= 0) & (rows < MEMBERS * GROUP)
    first_seq = tl.load(members + group * MEMBERS)
    seqs = tl.where(seqs >= 0, seqs, first_seq).to(tl.int64)
    positions = tl.load(seq_lens + seqs) - 1
    table = block_tables + first_seq.to(tl.int64) * table_stride
    wait_for_kernel_ahead(OVERLAP)

    q_heads = kv_head * GROUP + rows % GROUP
    queries = heads + (seqs * heads_stride + q_heads * HEAD_DIM)[:, None]
    angles = cos_sin + (positions.to(tl.int64) * HEAD_DIM)[:, None]
    q_tile = load_rotated(queries, q_norm, angles, eps, HEAD_DIM, BLOCK_D, NORM)
    maximum = tl.full([BLOCK_M], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    mixed = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    maximum, total, mixed = attend_paged(
        q_tile,
        k_cache,
        v_cache,
        table,
        first_tile,
        end_tile,
        tokens,
        0,
        kv_head,
        (maximum, total, mixed),
        scale,
        KV_HEADS,
        HEAD_DIM,
        BLOCK_SIZE,
        BLOCK_N,
        False,
        False,
    )

    seen = total > 0
    total = tl.where(seen, total, 1.0)
    cell = (seqs * KV_HEADS + kv_head) * tl.num_programs(2) + segment
    place = cell * GROUP_ROWS + rows % GROUP
    tl.store(log_sums + place, tl.where(seen, maximum + tl.log2(total), LOWEST), mask=real)
    part = mixed / total[:, None]
    tl.store(parts + place[:, None] * BLOCK_D + dims[None, :], part, mask=real[:, None])
