"""Attention and what it does on its way, beside PyTorch's over keys that lie in a row."""

from collections.abc import Iterator
from functools import partial

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

from bench.kernels.cases import EPS, Bench, Case, Launch, Topic
from bench.kernels.work import (
    BLOCK_SIZE,
    LLAMA_8B,
    Model,
    decode_bytes,
    gather_bytes,
    prefill_bytes,
    prefill_flop,
    rope_bytes,
)
from gpu_worker.kernels.heads import AttentionHeads, QKNorm
from gpu_worker.kernels.metadata import AttentionMetadata, ChunkKeys
from gpu_worker.kernels.ops import KVCache

# The longest sequence that launches reckon with, as a step that is captured once for all lengths does.
_MAX_SEQ_LEN = 34_000
_FLASH, _CUDNN, _PYTORCH = "flash", "cuDNN", "PyTorch"


class _Caches:
    """Blocks in no order for several copies of `num_seqs` sequences of up to `length` tokens."""

    def __init__(self, bench: Bench, copies: int, num_seqs: int, length: int) -> None:
        model = bench.model
        blocks = -(-length // BLOCK_SIZE)
        count = copies * num_seqs * blocks
        shape = (count, BLOCK_SIZE, model.num_kv_heads, model.head_dim)
        self.paged: KVCache = (bench.normal(*shape), bench.normal(*shape))
        self._rows = (copies, num_seqs, blocks * BLOCK_SIZE, model.num_kv_heads, model.head_dim)
        self._length = length
        order = torch.randperm(count, device=bench.device).to(torch.int32).view(copies, num_seqs, blocks)
        # Each where it would begin in a step: at an address that kernels need not be compiled for anew.
        self.tables = [tables.clone() for tables in order]

    def in_a_row(self, copy: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The same memory as keys and values [num_seqs, num_kv_heads, length, head_dim]."""
        keys, values = (x.view(self._rows)[copy, :, : self._length].transpose(1, 2) for x in self.paged)
        return keys, values


def _heads(bench: Bench) -> AttentionHeads:
    model = bench.model
    norm = None
    if model.qk_norm:
        norm = QKNorm(bench.normal(model.head_dim), bench.normal(model.head_dim), EPS)
    return AttentionHeads(model.num_heads, model.num_kv_heads, model.head_dim, None, norm)


def _angles(bench: Bench) -> torch.Tensor:
    return bench.normal(_MAX_SEQ_LEN, bench.model.head_dim, dtype=torch.float32)


def _queries(model: Model, packed: torch.Tensor) -> torch.Tensor:
    """A copy of those in `packed`: [T, num_heads, head_dim]."""
    return packed[:, : model.mixed].reshape(-1, model.num_heads, model.head_dim)


def _decode_metadata(bench: Bench, tables: torch.Tensor, context: int) -> AttentionMetadata:
    rows = len(tables)
    positions = bench.ints(context - 1).repeat(rows)
    return AttentionMetadata(
        query_start=torch.arange(rows + 1, dtype=torch.int32, device=bench.device),
        seq_lens=positions + 1,
        block_tables=tables,
        positions=positions,
        slots=tables[:, (context - 1) // BLOCK_SIZE] * BLOCK_SIZE + (context - 1) % BLOCK_SIZE,
        counts=bench.ints(rows, rows, 0),
        num_decodes=rows,
        num_chunks=0,
        max_seq_len=_MAX_SEQ_LEN,
    )


def _chunk_metadata(bench: Bench, table: torch.Tensor, query: int, context: int) -> AttentionMetadata:
    """Of one sequence, with its blocks in `table` [1, blocks]."""
    positions = torch.arange(context, context + query, dtype=torch.int32, device=bench.device)
    blocks = table[0]
    return AttentionMetadata(
        query_start=bench.ints(0, query),
        seq_lens=bench.ints(context + query),
        block_tables=table,
        positions=positions,
        slots=blocks[positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE,
        counts=bench.ints(0, 1, len(blocks)),
        num_decodes=0,
        num_chunks=1,
        max_seq_len=_MAX_SEQ_LEN,
        chunk_keys=ChunkKeys(blocks, bench.ints(0)),
    )


def _over_all(
    backend: SDPBackend, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(queries, keys, values, enable_gqa=True)


def _causal(
    backend: SDPBackend, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    """Each query sees one key more than the one before it, the last one all."""
    mask = causal_lower_right(queries.shape[2], keys.shape[2])
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, enable_gqa=True)


def _decode_case(bench: Bench, rows: int, context: int) -> Case:
    model = bench.model
    work = decode_bytes(model, rows, context)
    copies = range(bench.copies(work))
    heads, angles = _heads(bench), _angles(bench)
    caches = _Caches(bench, len(copies), rows, context)
    packed = [bench.normal(rows, model.packed) for _ in copies]
    ours: list[Launch] = []
    rivals: dict[str, list[Launch]] = {_FLASH: [], _CUDNN: []}
    for n in copies:
        metadata = _decode_metadata(bench, caches.tables[n], context)
        ours.append(partial(bench.attention, packed[n], heads, angles, caches.paged, metadata))
        attended = (_queries(model, packed[n]).unsqueeze(2), *caches.in_a_row(n))
        rivals[_FLASH].append(partial(_over_all, SDPBackend.FLASH_ATTENTION, *attended))
        rivals[_CUDNN].append(partial(_over_all, SDPBackend.CUDNN_ATTENTION, *attended))
    return Case((f"{rows}", f"{context}"), work, ours, rivals)


def decode_cases(bench: Bench) -> Iterator[Case]:
    """The whole of what a decode's attention does; PyTorch's neither rotates nor caches."""
    for rows in bench.sweep.decode_rows:
        for context in bench.sweep.contexts:
            work = decode_bytes(bench.model, rows, context)
            if work * bench.copies(work) <= bench.sweep.most_cache:
                yield _decode_case(bench, rows, context)


def _prefill_case(bench: Bench, query: int, context: int) -> Case:
    model = bench.model
    copies = range(bench.copies(prefill_bytes(model, query, context)))
    heads, angles = _heads(bench), _angles(bench)
    caches = _Caches(bench, len(copies), 1, query + context)
    packed = [bench.normal(query, model.packed) for _ in copies]
    ours: list[Launch] = []
    rivals: dict[str, list[Launch]] = {_FLASH: []}
    if not context:
        # cuDNN would be given a mask of all pairs: a causal one that ends at the last key has no name there.
        rivals[_CUDNN] = []
    backends = {_FLASH: SDPBackend.FLASH_ATTENTION, _CUDNN: SDPBackend.CUDNN_ATTENTION}
    for n in copies:
        metadata = _chunk_metadata(bench, caches.tables[n], query, context)
        ours.append(partial(bench.attention, packed[n], heads, angles, caches.paged, metadata))
        queries = _queries(model, packed[n]).transpose(0, 1).unsqueeze(0)
        for name, launches in rivals.items():
            launches.append(partial(_causal, backends[name], queries, *caches.in_a_row(n)))
    return Case((f"{query}", f"{context}"), prefill_flop(model, query, context), ours, rivals)


def prefill_cases(bench: Bench) -> Iterator[Case]:
    """Rotation, cache write, gathering, attention and joining; PyTorch's is the attention alone."""
    for query, context in bench.sweep.chunks:
        yield _prefill_case(bench, query, context)


def rope_cases(bench: Bench) -> Iterator[Case]:
    """Norms if the model has them, rotation and cache write."""
    heads, angles = _heads(bench), _angles(bench)
    for tokens in bench.sweep.tokens:
        work = rope_bytes(bench.model, tokens)
        caches = _Caches(bench, bench.copies(work), 1, tokens)
        ours: list[Launch] = []
        for table in caches.tables:
            metadata = _chunk_metadata(bench, table, tokens, 0)
            packed = bench.normal(tokens, bench.model.packed)
            # A part of an operation that has no part of its own.
            rotate = bench.attention._rotate_and_cache
            ours.append(partial(rotate, packed, heads, angles, caches.paged, metadata))
        yield Case((f"{tokens}",), work, ours)


def _gather(kv_cache: KVCache, blocks: torch.Tensor) -> KVCache:
    keys, values = (cache.index_select(0, blocks).flatten(0, 1).transpose(0, 1) for cache in kv_cache)
    return keys.contiguous(), values.contiguous()


def gather_cases(bench: Bench) -> Iterator[Case]:
    """Keys and values of one sequence out of their blocks."""
    for tokens in bench.sweep.gathered:
        work = gather_bytes(bench.model, tokens)
        caches = _Caches(bench, bench.copies(work), 1, tokens)
        ours: list[Launch] = []
        theirs: list[Launch] = []
        for (blocks,) in caches.tables:
            chunk_keys, counts = ChunkKeys(blocks, bench.ints(0)), bench.ints(0, 1, len(blocks))
            ours.append(partial(bench.attention._gather, caches.paged, chunk_keys, counts))
            theirs.append(partial(_gather, caches.paged, blocks))
        yield Case((f"{tokens}",), work, ours, {_PYTORCH: theirs})


TOPICS = {
    "decode": Topic("Decode attention", "TB/s", ("rows", "context"), (_FLASH, _CUDNN), decode_cases),
    "prefill": Topic("Prefill attention", "TFLOP/s", ("query", "context"), (_FLASH, _CUDNN), prefill_cases),
    "rope": Topic("Rotation and cache write", "TB/s", ("tokens",), (), rope_cases),
    "gather": Topic("Gathering keys", "TB/s", ("tokens",), (_PYTORCH,), gather_cases, (LLAMA_8B,)),
}
