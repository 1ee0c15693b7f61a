"""Copies cached keys and values of whole sequences out of their blocks, so that attention can stream them."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
import triton
import triton.language as tl

from gpu_worker.kernels.overlap import let_next_kernel_start, wait_for_kernel_ahead


@triton.jit(do_not_specialize=["num_keys"])
def gather_keys_kernel(
    keys,  # [KV_HEADS, num_keys, HEAD_DIM] contiguous
    values,
    k_cache,  # [num_blocks, BLOCK_SIZE, KV_HEADS, HEAD_DIM] contiguous
    v_cache,
    blocks,  # [num_keys / BLOCK_SIZE] int32: whose contents to line up
    counts,  # [3] int32: the last says how many of the blocks there are
    num_keys,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """A program copies BLOCK_ROWS heads of the tokens of one block."""
    let_next_kernel_start(OVERLAP)
    wait_for_kernel_ahead(OVERLAP)
    nth = tl.program_id(0)
    if nth >= tl.load(counts + 2):
        return
    block = tl.load(blocks + nth).to(tl.int64)
    rows = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    dims = tl.arange(0, BLOCK_D)[None, :]
    inside = (rows < BLOCK_SIZE * KV_HEADS)[:, None] & (dims < HEAD_DIM)
    source = (block * (BLOCK_SIZE * KV_HEADS) + rows)[:, None] * HEAD_DIM + dims
    token = nth * BLOCK_SIZE + rows // KV_HEADS
    target = ((rows % KV_HEADS).to(tl.int64) * num_keys + token)[:, None] * HEAD_DIM + dims
    tl.store(keys + target, tl.load(k_cache + source, mask=inside), mask=inside)
    tl.store(values + target, tl.load(v_cache + source, mask=inside), mask=inside)
