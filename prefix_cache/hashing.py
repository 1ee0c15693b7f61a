"""The identity of a prefix: a chain of digests over full blocks of token ids.

The bytes are canonical, so that a client in any language can compute them (docs/prefix-cache.md has vectors):

    root(salt)            = SHA-256("batchyard/prefix/1" 0x00 salt)[:16]       salt in UTF-8, may be empty
    digest(parent, block) = SHA-256(parent token[0] token[1] … )[:16]          tokens as little-endian u32

A digest names its block's tokens *and* everything before them, under one salt; two tenants with different
salts share nothing. 128 bits keep an accidental collision out of reach, SHA-256 a deliberate one.
"""

import hashlib
from collections.abc import Iterator
from typing import NewType

import numpy as np
import numpy.typing as npt

Digest = NewType("Digest", bytes)

DIGEST_BYTES = 16
_DOMAIN = b"batchyard/prefix/1\x00"


def root(salt: str) -> Digest:
    """What stands in for the parent of a first block."""
    return Digest(hashlib.sha256(_DOMAIN + salt.encode()).digest()[:DIGEST_BYTES])


def chain(parent: Digest, tokens: npt.NDArray[np.int32], block_size: int) -> Iterator[Digest]:
    """The digests of the full blocks of `tokens` [n] int32, in order; a last partial block has none."""
    data = tokens.astype("<u4", copy=False).tobytes()
    width = 4 * block_size
    for start in range(0, len(data) - width + 1, width):
        parent = Digest(hashlib.sha256(parent + data[start : start + width]).digest()[:DIGEST_BYTES])
        yield parent
