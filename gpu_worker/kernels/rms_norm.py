"""RMSNorm (Zhang and Sennrich 2019), alone or after adding to the residual stream."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
import triton
import triton.language as tl

from gpu_worker.kernels.overlap import let_next_kernel_start, wait_for_kernel_ahead


@triton.jit(do_not_specialize=["num_rows"])
def rms_norm_kernel(
    out,  # [num_rows, HIDDEN] contiguous
    x,  # [num_rows, HIDDEN], the first stride free
    residual,  # as x; read and written if ADD
    weight,  # [HIDDEN]
    num_rows,
    x_stride,
    residual_stride,
    eps,
    ADD: tl.constexpr,
    HIDDEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """A program norms BLOCK_ROWS rows, each read once and kept in registers."""
    let_next_kernel_start(OVERLAP)
    wait_for_kernel_ahead(OVERLAP)
    rows = (tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)[:, None]
    columns = tl.arange(0, BLOCK_HIDDEN)[None, :]
    inside = (rows < num_rows) & (columns < HIDDEN)
    values = tl.load(x + rows * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        place = residual + rows * residual_stride + columns
        # Rounded as it is stored: the norm is that of the residual stream as later layers see it.
        total = (values + tl.load(place, mask=inside, other=0.0).to(tl.float32)).to(residual.dtype.element_ty)
        tl.store(place, total, mask=inside)
        values = total.to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, axis=1) / HIDDEN + eps)
    weights = tl.load(weight + columns, mask=columns < HIDDEN, other=0.0).to(tl.float32)
    normed = values * scale[:, None] * weights
    tl.store(out + rows * HIDDEN + columns, normed.to(out.dtype.element_ty), mask=inside)
