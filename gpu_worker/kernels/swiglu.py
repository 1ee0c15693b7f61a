"""SwiGLU (Shazeer 2020): silu(gate) * up."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
import triton
import triton.language as tl

from gpu_worker.kernels.overlap import let_next_kernel_start, wait_for_kernel_ahead


@triton.jit
def swiglu_kernel(
    out,  # [num_tokens, INTERMEDIATE] contiguous
    gate_up,  # [num_tokens, 2 * INTERMEDIATE], gate first; the first stride free
    gate_up_stride,
    INTERMEDIATE: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """A program makes BLOCK columns of one token."""
    let_next_kernel_start(OVERLAP)
    wait_for_kernel_ahead(OVERLAP)
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < INTERMEDIATE
    gates = gate_up + token * gate_up_stride + columns
    gate = tl.load(gates, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gates + INTERMEDIATE, mask=inside, other=0.0).to(tl.float32)
    product = gate * tl.sigmoid(gate) * up
    tl.store(out + token * INTERMEDIATE + columns, product.to(out.dtype.element_ty), mask=inside)
