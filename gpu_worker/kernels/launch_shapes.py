"""How large the pieces are that kernels work on: pure functions of sizes, so that they can be reasoned about.

Whatever a kernel is compiled for depends on the model alone, never on the batch, except that attention has
one tile for decodes and one for chunks, either split or not, and the product of few rows one for 16 and one
for 32: nothing compiles while requests wait.
"""

from dataclasses import dataclass

# Columns of a token that a program of SwiGLU makes.
SWIGLU_BLOCK = 1024
# Segments of one query block's keys at most; the reduction reads all of them at once.
MAX_SEGMENTS = 32
# Tokens that sequences share come in multiples of this, whole tiles of keys.
SHARED_TOKENS = 64
# Segments of what sequences share, at most.
SHARED_SEGMENTS = 8
# Keys a segment should have at least, in tokens, to be worth joining: by the last program of several, which a
# decode does, or by a kernel of its own.
_MIN_SEGMENT = 64
_MIN_SEGMENT_ALONE = 256


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
        """As the kernels' arguments, those of all of them."""
        return {
            "BLOCK_M": self.block_m,
            "BLOCK_N": self.block_n,
            "BLOCK_D": self.block_d,
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
        }


def next_power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def row_tile(hidden: int) -> RowTile:
    """Short rows share a program; long ones get warps so that a thread holds 16 values at most."""
    columns = next_power_of_two(hidden)
    rows = max(1, 1024 // columns)
    return RowTile(rows, columns, num_warps=min(16, max(2, rows * columns // 512)))


def decode_tile(group: int, head_dim: int, itemsize: int) -> AttentionTile:
    """One token of a sequence: bound by memory, so a small tile with many loads in flight."""
    block_m = max(16, next_power_of_two(group))
    # Loading a block's number before its keys takes stages of its own: 4 keep two tiles of keys in flight.
    block_n, num_warps, num_stages = (64, 2, 4) if itemsize <= 2 else (32, 4, 2)
    return AttentionTile(1, block_m, block_n, _head_columns(head_dim), num_warps, num_stages, 4)


def shared_tile(group: int, head_dim: int, itemsize: int) -> AttentionTile:
    """One token each of several sequences, over keys that they share."""
    block_m = max(64, next_power_of_two(group))
    block_n, num_stages = (64, 4) if itemsize <= 2 else (32, 2)
    return AttentionTile(block_m // group, block_m, block_n, _head_columns(head_dim), 4, num_stages, 2)


def most_members(group: int) -> int:
    """Sequences that a tile of shared keys is for at most."""
    return shared_tile(group, 1, 2).block_q


def chunk_tile(group: int, head_dim: int, itemsize: int, shared_memory: int) -> AttentionTile:
    """Many tokens of a sequence: bound by the tensor cores, so as many rows as registers hold.

    As many tiles of keys are on their way as the `shared_memory` of a program, in bytes, has room for.
    """
    block_d = _head_columns(head_dim)
    if itemsize <= 2:
        block_m, block_n = (128, 128) if block_d <= 128 else (64, 64)
    else:
        # Full float32 has no tensor cores: operands are held in registers.
        block_m, block_n = 32, 32
    # Blocks of one token are decodes.
    block_m = max(block_m, next_power_of_two(2 * group))
    row = block_d * itemsize
    stages = (shared_memory - block_m * row - 1024) // (2 * block_n * row)
    return AttentionTile(block_m // group, block_m, block_n, block_d, 8, max(1, min(3, stages)), 1)


def _head_columns(head_dim: int) -> int:
    """Matrix units multiply 16 columns at least; those past the head are zeros."""
    return max(16, next_power_of_two(head_dim))


def num_query_blocks(num_tokens: int, num_seqs: int, block_q: int) -> int:
    """An upper bound of query blocks, without knowing where sequences begin."""
    return (num_tokens + num_seqs * (block_q - 1)) // block_q


def num_segments(programs: int, max_seq_len: int, tile: AttentionTile, num_multiprocessors: int) -> int:
    """Into how many segments keys are cut so that `programs` times as many fill the device; 1: not at all."""
    wanted = num_multiprocessors * tile.programs_per_multiprocessor // programs
    least = _MIN_SEGMENT if tile.block_q == 1 else _MIN_SEGMENT_ALONE
    return max(1, min(wanted, max_seq_len // least, MAX_SEGMENTS))


def min_segment_tiles(tile: AttentionTile) -> int:
    """Tiles of keys that a segment of a decode should have at least."""
    return _MIN_SEGMENT // tile.block_n


@dataclass(frozen=True, slots=True)
class MatmulTile:
    """What the product of few rows is compiled for; see there what is split."""

    block_m: int
    block_n: int
    block_k: int
    split: int
    num_warps: int
    num_stages: int

    @property
    def options(self) -> dict[str, int]:
        """As the kernel's arguments."""
        return {
            "BLOCK_M": self.block_m,
            "BLOCK_N": self.block_n,
            "BLOCK_K": self.block_k,
            "SPLIT": self.split,
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
        }


# Rows up to which reading the weights is all that counts; with more, cuBLAS is faster (docs/benchmarks.md).
MOST_MATMUL_ROWS = 32
# Programs that a split may make, on each multiprocessor, and inputs that it must leave to each.
_SPLIT_PROGRAMS = 2
_SPLIT_INPUTS = 768


def matmul_tile(
    rows: int, outputs: int, inputs: int, *, gated: bool, num_multiprocessors: int
) -> MatmulTile | None:
    """For `rows` in 16-bit numbers and `outputs` of each (pairs if `gated`); None where none fits."""
    block_n, block_k = 64, 128
    if not 0 < rows <= MOST_MATMUL_ROWS or outputs % block_n or inputs % block_k:
        return None
    split = 1
    for more in (2, 4):
        few = outputs // block_n * more <= num_multiprocessors * _SPLIT_PROGRAMS
        if not gated and few and inputs % (more * block_k) == 0 and inputs // more >= _SPLIT_INPUTS:
            split = more
    return MatmulTile(max(16, next_power_of_two(rows)), block_n, block_k, split, 4, 4)
