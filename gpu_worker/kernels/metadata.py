"""What one step's attention calls need to know, built once a step and shared by all layers."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """The sequences of one step, packed one after another without padding.

    A sequence brings `query_len` new tokens (1 when it decodes, a chunk when it prefills) that attend to
    everything it has in the cache, themselves included. Sequences that decode come first.

    query_start   [num_seqs + 1] int32: sequence s owns tokens query_start[s] .. query_start[s + 1]
    seq_lens      [num_seqs] int32: tokens in the cache once this step's are written
    block_tables  [num_seqs, max_blocks] int32: the blocks of each sequence in order, then anything
    positions     [num_tokens] int32: place of each token in its own sequence
    slots         [num_tokens] int64: where the token's key and value go, block * block_size + offset;
                  -1 writes nothing (padding)

    The host knows the rest without asking the device: num_decodes, and upper bounds of the two lengths.

    A batch of fixed size is filled up with decodes of seq_lens 0 and slot -1: they read nothing and attend to
    nothing, which gives zeros.
    """

    query_start: torch.Tensor
    seq_lens: torch.Tensor
    block_tables: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    num_decodes: int
    max_query_len: int
    max_seq_len: int

    @property
    def num_seqs(self) -> int:
        return self.seq_lens.shape[0]
