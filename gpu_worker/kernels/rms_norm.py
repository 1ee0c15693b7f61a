"""RMSNorm (Zhang and Sennrich 2019), alone or after adding to the residual stream."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_rows"])
def rms_norm_kernel(
    out,  # [num_rows, HIDDEN] contiguous
    x,  # [num_rows / HEADS, HEADS, HIDDEN], the first stride free
    residual,  # as x; read and written if ADD
    weight,  # [HIDDEN]
    num_rows,
    x_stride,
    residual_stride,
    eps,
    ADD: tl.constexpr,
    HEADS: tl.constexpr,
    HIDDEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
):
    """A program norms BLOCK_ROWS rows, each read once and kept in registers."""
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tl.arange(0, BLOCK_HIDDEN)
    inside = (rows < num_rows)[:, None] & (columns < HIDDEN)[None, :]
    tokens = (rows // HEADS).to(tl.int64)[:, None]
    columns_of_token = ((rows % HEADS) * HIDDEN)[:, None] + columns[None, :]

    values = tl.load(x + tokens * x_stride + columns_of_token, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        place = residual + tokens * residual_stride + columns_of_token
        # Rounded as it is stored: the norm is that of the residual stream as later layers see it.
        total = (values + tl.load(place, mask=inside, other=0.0).to(tl.float32)).to(residual.dtype.element_ty)
        tl.store(place, total, mask=inside)
        values = total.to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, axis=1) / HIDDEN + eps)
    weights = tl.load(weight + columns, mask=columns < HIDDEN, other=0.0).to(tl.float32)
    normed = values * scale[:, None] * weights[None, :]
    place = out + rows.to(tl.int64)[:, None] * HIDDEN + columns[None, :]
    tl.store(place, normed.to(out.dtype.element_ty), mask=inside)
