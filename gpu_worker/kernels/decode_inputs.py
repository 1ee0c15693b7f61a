"""What a decode step feeds the model, built on the device from the row table by one kernel.

The host says which rows decode and how many tokens each has computed; everything else is on the device.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

_BLOCK = 256  # entries of a block table copied at a time


@triton.jit
def decode_inputs_kernel(
    rows,
    computed,
    tokens,
    tables,
    input_ids,
    positions,
    seq_lens,
    slots,
    gathered,
    token_stride,
    table_stride,
    gathered_stride,
    PADDING_ROW: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0)
    row = tl.load(rows + i).to(tl.int64)
    position = tl.load(computed + i)
    is_padding = row == PADDING_ROW
    tl.store(input_ids + i, tl.load(tokens + row * token_stride + position))
    tl.store(positions + i, position)
    tl.store(seq_lens + i, tl.where(is_padding, 0, position + 1))
    block = tl.load(tables + row * table_stride + position // BLOCK_SIZE).to(tl.int64)
    tl.store(slots + i, tl.where(is_padding, -1, block * BLOCK_SIZE + position % BLOCK_SIZE))
    count = position // BLOCK_SIZE + 1
    for start in range(0, count, BLOCK):
        at = start + tl.arange(0, BLOCK)
        blocks = tl.load(tables + row * table_stride + at, mask=at < count, other=0)
        tl.store(gathered + i * gathered_stride + at, blocks, mask=at < count)


def decode_inputs(
    rows: torch.Tensor,
    computed: torch.Tensor,
    tokens: torch.Tensor,
    tables: torch.Tensor,
    outputs: Sequence[torch.Tensor],
    block_size: int,
) -> None:
    """Fills `outputs`: input_ids, positions, seq_lens, slots [n] int32, block tables [n, …] int32.

    rows, computed [n] int32. The last row of `tokens` [max_rows + 1, …] int32 and of `tables`
    [max_rows + 1, max_blocks] int32 is padding: it writes nothing and sees nothing.
    """
    input_ids, positions, seq_lens, slots, gathered = outputs
    decode_inputs_kernel[(rows.shape[0],)](
        rows,
        computed,
        tokens,
        tables,
        input_ids,
        positions,
        seq_lens,
        slots,
        gathered,
        tokens.stride(0),
        tables.stride(0),
        gathered.stride(0),
        PADDING_ROW=tables.shape[0] - 1,
        BLOCK_SIZE=block_size,
        BLOCK=_BLOCK,
        num_warps=4,
    )
