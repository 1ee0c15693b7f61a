"""A StepBatch message, unpacked: what changes before a step, and which chunks it prefills."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from batchyard.errors import ProtocolError
from gpu_worker.sampling.params import SamplingParams, parse_sampling
from protos.packing import unpack_i32
from protos.step_pb2 import NewRow, StepBatch

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Entry:
    """A request that enters row `row`: its tokens [n] int32, blocks [b] int32 and parameters."""

    row: int
    tokens: Ids
    prompt_len: int
    computed: int
    block_ids: Ids
    sampling: SamplingParams


class Moves(NamedTuple):
    """Copies between device block blocks[i] and host block host_blocks[i], int32."""

    blocks: Ids
    host_blocks: Ids


@dataclass(frozen=True, slots=True)
class StepDiff:
    """The fields of a StepBatch, all arrays int32; chunk_lens in tokens."""

    step: int
    freed_rows: Ids
    entries: tuple[Entry, ...]
    grown_rows: Ids
    grown_blocks: Ids
    chunk_rows: Ids
    chunk_lens: Ids
    saves: Moves
    loads: Moves


def parse_batch(batch: StepBatch, vocab_size: int) -> StepDiff:
    """Unpacks `batch`. Raises ProtocolError where it contradicts itself, whatever state the rows are in."""
    diff = StepDiff(
        step=batch.step,
        freed_rows=_unpack(batch.freed_rows, "freed_rows"),
        entries=tuple(_parse_entry(row, vocab_size) for row in batch.new_rows),
        grown_rows=_unpack(batch.grown_rows, "grown_rows"),
        grown_blocks=_unpack(batch.grown_blocks, "grown_blocks"),
        chunk_rows=_unpack(batch.chunk_rows, "chunk_rows"),
        chunk_lens=_unpack(batch.chunk_lens, "chunk_lens"),
        saves=Moves(_unpack(batch.saved_blocks, "saved_blocks"), _unpack(batch.saved_to, "saved_to")),
        loads=Moves(_unpack(batch.loaded_blocks, "loaded_blocks"), _unpack(batch.loaded_from, "loaded_from")),
    )
    if len(diff.grown_rows) != len(diff.grown_blocks):
        raise ProtocolError(f"{len(diff.grown_rows)} grown_rows, but {len(diff.grown_blocks)} grown_blocks")
    if len(diff.chunk_rows) != len(diff.chunk_lens):
        raise ProtocolError(f"{len(diff.chunk_rows)} chunk_rows, but {len(diff.chunk_lens)} chunk_lens")
    for what, moves in (("saved", diff.saves), ("loaded", diff.loads)):
        if len(moves.blocks) != len(moves.host_blocks):
            raise ProtocolError(
                f"{len(moves.blocks)} {what} blocks, but {len(moves.host_blocks)} on the host"
            )
    return diff


def _unpack(data: bytes, name: str) -> Ids:
    try:
        return unpack_i32(data)
    except ValueError as error:
        raise ProtocolError(f"{name} is cut short: {len(data)} bytes are no whole number of i32") from error


def _parse_entry(message: NewRow, vocab_size: int) -> Entry:
    entry = Entry(
        row=message.row,
        tokens=_unpack(message.tokens, "tokens"),
        prompt_len=message.prompt_len,
        computed=message.computed,
        block_ids=_unpack(message.block_ids, "block_ids"),
        sampling=parse_sampling(message.sampling, vocab_size),
    )
    known = len(entry.tokens)
    if not known:
        raise ProtocolError(f"row {entry.row} has no tokens")
    if np.any((entry.tokens < 0) | (entry.tokens >= vocab_size)):
        raise ProtocolError(f"row {entry.row} has a token outside the vocabulary of {vocab_size}")
    if not 1 <= entry.prompt_len <= known:
        raise ProtocolError(f"row {entry.row} has prompt_len {entry.prompt_len} of {known} tokens")
    if not 0 <= entry.computed < known:
        raise ProtocolError(f"row {entry.row} has {entry.computed} of {known} tokens computed, none to do")
    return entry
