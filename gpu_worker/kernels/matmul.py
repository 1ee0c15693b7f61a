"""Matrix products of few rows, bound by reading the weights once.

A program computes BLOCK_N outputs of all rows from a slice of the inputs. Weights are the left operand of the
tensor cores and the rows the right one: the left side has 64 rows at least, which weights fill and a few rows
of activations do not. Slices add up in the program of each tile that ends last, in their order, so that the
result does not depend on which that is.

What surrounds a product in a decoder layer happens while its outputs are in registers: SwiGLU, adding to the
residual stream, and RMSNorm, whose weights are applied where the stream is written, and whose scale of each
row where the next product ends, by the sums of squares that each tile leaves.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
import triton
import triton.language as tl

from gpu_worker.kernels.overlap import let_next_kernel_start, wait_for_kernel_ahead


@triton.jit
def _sum_slices(parts, place, inside, slice_size, SPLIT: tl.constexpr):
    total = tl.zeros(place.shape, tl.float32)
    for part in tl.static_range(SPLIT):
        # Another multiprocessor wrote this: not to be taken from this one's own cache.
        total += tl.load(parts + part * slice_size + place, mask=inside, other=0.0, cache_modifier=".cg")
    return total


@triton.jit
def _row_scales(
    squares, rows, num_rows, eps, K: tl.constexpr, TILES: tl.constexpr, BLOCK_TILES: tl.constexpr
):
    """What RMSNorm multiplies each of `rows` [n] by: [n, 1]."""
    tiles = tl.arange(0, BLOCK_TILES)[None, :]
    exists = (tiles < TILES) & (rows < num_rows)[:, None]
    sums = tl.load(squares + tiles * num_rows + rows[:, None], mask=exists, other=0.0)
    return tl.rsqrt(tl.sum(sums, axis=1) / K + eps)[:, None]


@triton.jit
def _add_to_stream(result, before, norm_weights, residual, out, next_squares, place, rows, num_rows):
    """Adds `result` to the residual stream, and leaves what the norm of the sum needs."""
    exists = (rows < num_rows)[:, None]
    # Rounded as it is stored, and as a product that stands alone would be.
    rounded = result.to(residual.dtype.element_ty).to(tl.float32)
    after = (before.to(tl.float32) + rounded).to(residual.dtype.element_ty)
    tl.store(residual + place, after, mask=exists)
    values = after.to(tl.float32)
    weighted = values * norm_weights.to(tl.float32)[None, :]
    tl.store(out + place, weighted.to(out.dtype.element_ty), mask=exists)
    squares = next_squares + tl.program_id(0) * num_rows + rows
    tl.store(squares, tl.sum(values * values, axis=1), mask=rows < num_rows)


@triton.jit(do_not_specialize=["num_rows"])
def matmul_kernel(
    out,  # [num_rows, N] contiguous; if ADD the sum times norm_weight
    x,  # [num_rows, K], the first stride free
    weight,  # [N, K] contiguous; if GATED [2 * N, K], the gates first
    bias,  # as the rows of weight, if BIAS
    squares,  # [TILES, num_rows] float32, if SCALED: rows are scaled by rsqrt(sum over tiles / K + eps)
    residual,  # [num_rows, N] contiguous, if ADD: the products are added to it
    norm_weight,  # [N], if ADD
    next_squares,  # [N / BLOCK_N, num_rows] float32, if ADD: sums of squares of what is in residual now
    parts,  # [SPLIT, num_rows, N] float32, room for the slices' sums, if SPLIT > 1
    arrivals,  # [N / BLOCK_N] int32, all 0, and 0 again afterwards, if SPLIT > 1
    num_rows,
    x_stride,
    eps,
    N: tl.constexpr,
    K: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_TILES: tl.constexpr,  # the next power of two
    BLOCK_M: tl.constexpr,  # num_rows at least
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT: tl.constexpr,
    GATED: tl.constexpr,  # out = silu(gate) * up (SwiGLU, Shazeer 2020)
    BIAS: tl.constexpr,
    SCALED: tl.constexpr,
    ADD: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    rows = tl.arange(0, BLOCK_M)
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = tl.program_id(1) * (K // SPLIT)
    weight_rows = weight + columns.to(tl.int64) * K + first
    wait_for_kernel_ahead(OVERLAP)
    inner = tl.arange(0, BLOCK_K)
    x_places = x + rows[:, None] * x_stride + first + inner[None, :]
    weights = weight_rows[:, None] + inner[None, :]
    exists = (rows < num_rows)[:, None]
    place = rows[:, None] * N + columns[None, :]
    # What the end needs is asked for here: by then it has come.
    if ADD:
        before = tl.load(residual + place, mask=exists, other=0.0)
        norm_weights = tl.load(norm_weight + columns)
    if SCALED:
        scales = _row_scales(squares, rows, num_rows, eps, K, TILES, BLOCK_TILES)
    total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    total_up = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for k in range(0, K // SPLIT, BLOCK_K):
        x_tile = tl.load(x_places + k, mask=exists, other=0.0)
        total = tl.dot(tl.load(weights + k), tl.trans(x_tile), total)
        if GATED:
            total_up = tl.dot(tl.load(weights + (N * K + k)), tl.trans(x_tile), total_up)
    # Not earlier: programs that only wait would keep these from their multiprocessors' memory.
    let_next_kernel_start(OVERLAP)

    result = tl.trans(total)
    if SPLIT > 1:
        tl.store(parts + tl.program_id(1) * num_rows * N + place, result, mask=exists)
        tl.debug_barrier()  # all of the program's threads have stored
        arrived = tl.atomic_add(arrivals + tl.program_id(0), 1, sem="acq_rel")
        if arrived < SPLIT - 1:
            return
        tl.store(arrivals + tl.program_id(0), 0)
        result = _sum_slices(parts, place, exists, num_rows * N, SPLIT)
    if SCALED:
        result *= scales
    if BIAS:
        result += tl.load(bias + columns).to(tl.float32)[None, :]
    if GATED:
        # Rounded as two products that stand alone would store them.
        gate = result.to(out.dtype.element_ty).to(tl.float32)
        up = tl.trans(total_up)
        if SCALED:
            up *= scales
        if BIAS:
            up += tl.load(bias + N + columns).to(tl.float32)[None, :]
        result = gate * tl.sigmoid(gate) * up.to(out.dtype.element_ty).to(tl.float32)
    if ADD:
        _add_to_stream(result, before, norm_weights, residual, out, next_squares, place, rows, num_rows)
    else:
        tl.store(out + place, result.to(out.dtype.element_ty), mask=exists)
