"""How large the pieces are that kernels work on: pure functions of sizes, so that they can be reasoned about.

Whatever a kernel is compiled for depends on the model alone, never on the batch, except that attention has
one tile for decodes and one for chunks, either split or not: nothing compiles while requests wait.
"""

from dataclasses import dataclass

# Columns of a token that a program of SwiGLU makes.
SWIGLU_BLOCK = 1024
# Segments of one query block's keys at most; the reduction reads all of them at once.
MAX_SEGMENTS = 32
# Keys a segment should have at least, in tokens, to be worth joining.
_MIN_SEGMENT = 256


@dataclass(frozen=True, slots=True)
class RowTile:
    """A program of RMSNorm works on `rows` rows, padded to `columns`."""

    rows: int
    columns: int
    num_warps: int


@dataclass(frozen=True, slots=True)
class AttentionTile:
    """What the attention kernel is compiled for; see there what a block is.

    `programs_per_multiprocessor` is how many of them keep a multiprocessor busy.
    """

    block_q: int
    block_m: int
    block_n: int
    block_d: int
    num_warps: int
    num_stages: int
    programs_per_multiprocessor: int

    @property
    def options(self) -> dict[str, int]:
        """As the kernel's arguments."""
        return {
            "BLOCK_Q": self.block_q,
            "BLOCK_M": self.block_m,
            "BLOCK_N": self.block_n,
            "BLOCK_D": self.block_d,
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
        }


def next_power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def row_tile(hidden: int) -> RowTile:
    """Short rows (a head's) share a program; long ones get warps so that a thread holds 16 values at most."""
    columns = next_power_of_two(hidden)
    rows = max(1, 1024 // columns)
    return RowTile(rows, columns, num_warps=min(16, max(2, rows * columns // 512)))


def decode_tile(group: int, head_dim: int, itemsize: int) -> AttentionTile:
    """One token of a sequence: bound by memory, so a small tile with many loads in flight."""
    block_m = max(16, next_power_of_two(group))
    # Loading a block's number before its keys takes stages of its own: 5 keep two tiles of keys in flight.
    block_n, num_stages = (64, 5) if itemsize <= 2 else (32, 2)
    return AttentionTile(1, block_m, block_n, _head_columns(head_dim), 4, num_stages, 3)


def chunk_tile(group: int, head_dim: int, itemsize: int) -> AttentionTile:
    """Many tokens of a sequence: bound by the tensor cores, so as many rows as registers hold."""
    block_d = _head_columns(head_dim)
    if itemsize <= 2:
        block_m, block_n, num_stages = 128 if block_d <= 128 else 64, 64, 3
    else:
        # Full float32 has no tensor cores: operands are held in registers.
        block_m, block_n, num_stages = 32, 32, 2
    # Blocks of one token are decodes.
    block_m = max(block_m, next_power_of_two(2 * group))
    return AttentionTile(block_m // group, block_m, block_n, block_d, 8, num_stages, 1)


def _head_columns(head_dim: int) -> int:
    """Matrix units multiply 16 columns at least; those past the head are zeros."""
    return max(16, next_power_of_two(head_dim))


def num_query_blocks(num_tokens: int, num_seqs: int, block_q: int) -> int:
    """An upper bound of query blocks, without knowing where sequences begin."""
    return (num_tokens + num_seqs * (block_q - 1)) // block_q


def num_segments(programs: int, max_seq_len: int, tile: AttentionTile, num_multiprocessors: int) -> int:
    """Into how many segments keys are cut so that `programs` times as many fill the device; 1: not at all."""
    wanted = num_multiprocessors * tile.programs_per_multiprocessor // programs
    return max(1, min(wanted, max_seq_len // _MIN_SEGMENT, MAX_SEGMENTS))
