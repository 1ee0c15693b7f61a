"""Paged batches to try kernels on: on a GPU where there is one, else in Triton's interpreter."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch

from gpu_worker.kernels.heads import AttentionHeads, QKNorm
from gpu_worker.kernels.metadata import AttentionMetadata, ChunkKeys
from gpu_worker.kernels.ops import Ops

HAS_GPU = torch.cuda.is_available()

# The interpreter's matrix product of bfloat16 is wrong.
DTYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if HAS_GPU else [])
TOLERANCES = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@dataclass(frozen=True)
class Batch:
    """Random queries, keys and values of one step, packed as a projection leaves them, and their cache.

    Slots that a sequence has written hold random numbers, all others NaN. Block tables end in blocks of NaN.
    """

    packed: torch.Tensor
    heads: AttentionHeads
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    metadata: AttentionMetadata
    cos_sin: torch.Tensor

    @property
    def split(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values, [T, heads, head_dim] each: views."""
        heads = self.heads
        by_head = self.packed.view(self.packed.shape[0], heads.packed, heads.head_dim)
        q, k, v = by_head.split((heads.num_heads, heads.num_kv_heads, heads.num_kv_heads), dim=1)
        return q, k, v

    def attention_inputs(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, AttentionMetadata, float]:
        return self.split[0], self.k_cache, self.v_cache, self.metadata, self.heads.scale

    def attend(self, ops: Ops) -> torch.Tensor:
        """By `ops`; the projection and the caches change."""
        caches = (self.k_cache, self.v_cache)
        return ops.attend(self.packed, self.heads, self.cos_sin, caches, self.metadata)

    def reference(self) -> "Batch":
        """A copy in float32 on the CPU."""
        norm = self.heads.qk_norm
        if norm is not None:
            norm = QKNorm(norm.q_weight.float().cpu(), norm.k_weight.float().cpu(), norm.eps)
        m = self.metadata
        metadata = replace(
            m,
            query_start=m.query_start.cpu(),
            seq_lens=m.seq_lens.cpu(),
            block_tables=m.block_tables.cpu(),
            positions=m.positions.cpu(),
            slots=m.slots.cpu(),
            counts=m.counts.cpu(),
        )
        # float() and cpu() alone would give the tensor itself where there is nothing to convert.
        packed, k_cache, v_cache = (
            x.clone().float().cpu() for x in (self.packed, self.k_cache, self.v_cache)
        )
        heads = replace(self.heads, qk_norm=norm)
        return Batch(packed, heads, k_cache, v_cache, metadata, self.cos_sin.cpu())


def build_batch(
    sequences: list[tuple[int, int]],
    heads: tuple[int, int, int, int],
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    max_seq_len: int = 0,
    window: int | None = None,
    norm: bool = False,
) -> Batch:
    """One step of `sequences`, (query_len, seq_len) each, decodes first. seq_len 0 is padding.

    `heads` is num_heads, num_kv_heads, head_dim and the block size; `max_seq_len` the bound that the metadata
    states, at least.
    """
    num_heads, num_kv_heads, head_dim, size = heads
    random = torch.Generator().manual_seed(len(sequences) + num_heads + head_dim)
    query_lens, seq_lens = zip(*sequences, strict=True)
    needed = [-(-seq_len // size) for seq_len in seq_lens]
    num_blocks = sum(needed) + 2
    poison = num_blocks - 1
    free = torch.randperm(num_blocks - 1, generator=random).tolist()
    block_tables = torch.full((len(sequences), max(needed) + 3), poison, dtype=torch.int32)
    written = torch.zeros(num_blocks * size, dtype=torch.bool)
    positions, slots = [], []
    for s, (query_len, seq_len) in enumerate(sequences):
        blocks = torch.tensor([free.pop() for _ in range(needed[s])], dtype=torch.int32)
        block_tables[s, : needed[s]] = blocks
        places = torch.arange(seq_len)
        slots_of_sequence = blocks[places // size].long() * size + places % size
        written[slots_of_sequence] = True
        padding = seq_len == 0
        positions.append(torch.zeros(query_len) if padding else places[seq_len - query_len :])
        slots.append(torch.full((query_len,), -1) if padding else slots_of_sequence[seq_len - query_len :])

    cache_shape = (2, num_blocks * size, num_kv_heads, head_dim)
    caches = torch.randn(cache_shape, generator=random)
    caches[:, ~written] = torch.nan
    k_cache, v_cache = caches.to(device, dtype).view(2, num_blocks, size, *cache_shape[2:])
    width = (num_heads + 2 * num_kv_heads) * head_dim
    packed = torch.randn((sum(query_lens), width), generator=random).to(device, dtype)
    num_decodes = next((s for s, length in enumerate(query_lens) if length != 1), len(sequences))
    chunk_blocks = [block_tables[s, : needed[s]] for s in range(num_decodes, len(sequences))]
    chunk_starts = torch.tensor([0, *needed[num_decodes:]]).cumsum(0)[:-1] * size
    weights = (torch.rand((2, head_dim), generator=random) + 0.5).to(device, dtype)
    angles = torch.rand((max(seq_lens) + 1, head_dim // 2), generator=random) * 6
    metadata = AttentionMetadata(
        query_start=torch.tensor([0, *query_lens]).cumsum(0).to(device, torch.int32),
        seq_lens=torch.tensor(seq_lens).to(device, torch.int32),
        block_tables=block_tables.to(device),
        positions=torch.cat(positions).to(device, torch.int32),
        slots=torch.cat(slots).to(device, torch.int32),
        counts=torch.tensor([num_decodes, len(sequences), sum(map(len, chunk_blocks))]).to(
            device, torch.int32
        ),
        num_decodes=num_decodes,
        num_chunks=len(sequences) - num_decodes,
        max_seq_len=max(*seq_lens, max_seq_len),
        chunk_keys=ChunkKeys(torch.cat(chunk_blocks).to(device), chunk_starts.to(device, torch.int32))
        if chunk_blocks
        else None,
    )
    qk_norm = QKNorm(weights[0], weights[1], 1e-5) if norm else None
    spec = AttentionHeads(num_heads, num_kv_heads, head_dim, window, qk_norm)
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=-1).to(device)
    return Batch(packed, spec, k_cache, v_cache, metadata, cos_sin)


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """A dtype that kernels run in here."""
    found: torch.dtype = request.param
    return found


@pytest.fixture
def device() -> str:
    """Where kernels run here."""
    return "cuda" if HAS_GPU else "cpu"


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    return build_batch


@pytest.fixture
def assert_close(dtype: torch.dtype) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """Compares what a kernel gave in `dtype` with a float32 reference on the CPU."""

    def check(actual: torch.Tensor, expected: torch.Tensor) -> None:
        assert actual.dtype == dtype
        tolerance = TOLERANCES[dtype]
        torch.testing.assert_close(actual.float().cpu(), expected, rtol=tolerance, atol=tolerance)

    return check
