"""Reading and nothing else: what memory gives at best."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# ruff: noqa: ANN001, ANN201, N803  Triton constants are upper case and untyped
import torch
import triton
import triton.language as tl

_BLOCK, _ROUNDS, _WARPS = 4096, 8, 8


@triton.jit
def read_kernel(
    totals,  # [n] float32
    numbers,  # [n * ROUNDS * BLOCK] float32
    ROUNDS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program adds up its share of `numbers`."""
    first = tl.program_id(0).to(tl.int64) * (ROUNDS * BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for n in range(ROUNDS):
        total += tl.load(numbers + first + n * BLOCK + tl.arange(0, BLOCK))
    tl.store(totals + tl.program_id(0), tl.sum(total, axis=0))


def read_stream(numbers: torch.Tensor) -> torch.Tensor:
    """Sums of the parts of `numbers` float32, [n]; what is over at its end is left out."""
    programs = numbers.numel() // (_ROUNDS * _BLOCK)
    totals = numbers.new_empty(programs)
    sizes = {"ROUNDS": _ROUNDS, "BLOCK": _BLOCK}
    read_kernel[(programs,)](totals, numbers, **sizes, num_warps=_WARPS, enable_fp_fusion=True)
    return totals
