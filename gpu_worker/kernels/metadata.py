"""What one step's attention calls need to know, built once a step and shared by all layers."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class ChunkKeys:
    """Where the keys of the sequences that prefill are, so that they can be lined up.

    blocks  [n] int32: the blocks of each of them in order, one sequence after another; n, or fewer
    starts  [num_chunks] int32: where each begins among the n * block_size tokens of these blocks
    """

    blocks: torch.Tensor
    starts: torch.Tensor


@dataclass(frozen=True, slots=True)
class SharedKeys:
    """Groups of sequences that decode and have the same blocks at their beginning.

    members       [groups, most members] int32: which sequences, -1 for none
    group_tokens  [groups] int32: how many tokens they share, a multiple of SHARED_TOKENS; 0 for no group
    tokens        [num_decodes] int32: the same of each sequence, 0 where it is in no group
    count         [1] int32: groups that there are
    """

    members: torch.Tensor
    group_tokens: torch.Tensor
    tokens: torch.Tensor
    count: torch.Tensor


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """The sequences of one step, packed one after another without padding.

    A sequence brings `query_len` new tokens (1 when it decodes, a chunk when it prefills) that attend to
    everything it has in the cache, themselves included. Sequences that decode come first.

    query_start   [num_seqs + 1] int32: sequence s owns tokens query_start[s] .. query_start[s + 1]
    seq_lens      [num_seqs] int32: tokens in the cache once this step's are written
    block_tables  [num_seqs, max_blocks] int32: the blocks of each sequence in order, then anything
    positions     [num_tokens] int32: place of each token in its own sequence
    slots         [num_tokens] int32: where the token's key and value go, block * block_size + offset;
                  -1 writes nothing (padding)
    counts        [3] int32: sequences that decode, sequences in all, and blocks in chunk_keys

    The host knows the rest without asking the device: num_decodes and num_chunks, the sequences that decode
    and that prefill, and max_seq_len, an upper bound. `chunk_keys` is there if any sequence prefills.

    A batch of fixed size is filled up. With decodes of seq_lens 0 and slot -1: they read nothing and attend
    to nothing, which gives zeros. Or, where chunks follow, with tokens of no sequence: num_decodes and
    num_chunks are upper bounds then, `counts` says what there is, and the tokens of none have slot -1 and get
    anything.
    """

    query_start: torch.Tensor
    seq_lens: torch.Tensor
    block_tables: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    counts: torch.Tensor
    num_decodes: int
    num_chunks: int
    max_seq_len: int
    chunk_keys: ChunkKeys | None = None
    shared_keys: SharedKeys | None = None
