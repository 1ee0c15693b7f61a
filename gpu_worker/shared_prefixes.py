"""Which sequences that decode have the same blocks at their beginning: these can be read once for all.

Blocks are shared from the first one on (a prefix is cached whole), so sequences whose block at some place is
the same share all blocks before it too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from gpu_worker.kernels.launch_shapes import SHARED_TOKENS
from gpu_worker.kernels.metadata import SharedKeys
from gpu_worker.rows import RowTable, StepPlan

Int32s = npt.NDArray[np.int32]

# Tokens that must be shared at least: below, one pass over all keys is faster.
_LEAST = 256


class SharedGroups(NamedTuple):
    """Sequences of a step, n of which decode, that share a prefix; g groups.

    members [g, most members] int32: which sequences, -1 for none; group_tokens [g] int32: how many tokens
    they share, a multiple of SHARED_TOKENS; tokens [n] int32: the same of each sequence, 0 where it shares
    none.
    """

    members: Int32s
    group_tokens: Int32s
    tokens: Int32s


@dataclass(frozen=True, slots=True)
class SharedLayout:
    """SharedKeys of fixed size as one vector of integers, of `seqs` sequences and at most `groups` groups."""

    seqs: int
    groups: int
    most_members: int

    @property
    def lengths(self) -> tuple[int, ...]:
        """Of tokens, members, group_tokens and count."""
        return self.seqs, self.groups * self.most_members, self.groups, 1

    @property
    def total(self) -> int:
        return sum(self.lengths)

    def pack(self, shared: SharedGroups | None, into: Int32s) -> None:
        """Fills `into` [total]. Groups that are too many share nothing."""
        into[:] = 0
        if shared is None:
            return
        tokens, members, group_tokens, count = np.split(into, np.cumsum(self.lengths)[:-1])
        kept = min(len(shared.members), self.groups)
        members.reshape(self.groups, self.most_members)[:kept] = shared.members[:kept]
        group_tokens[:kept] = shared.group_tokens[:kept]
        count[0] = kept
        tokens[: len(shared.tokens)] = shared.tokens
        left_out = shared.members[kept:]
        tokens[left_out[left_out >= 0]] = 0

    def keys(self, parts: Sequence[torch.Tensor]) -> SharedKeys:
        """`parts`, of these lengths, for attention."""
        tokens, members, group_tokens, count = parts
        return SharedKeys(members.view(self.groups, self.most_members), group_tokens, tokens, count)


class SharedPrefixes:
    """Finds them, and keeps what it found while the same requests decode."""

    def __init__(self, rows: RowTable, most_members: int) -> None:
        """most_members: sequences in a group at most."""
        self._rows = rows
        self._most_members = most_members
        self._column = _LEAST // rows.limits.block_size - 1
        self._decodes = np.empty(0, np.int64)
        self._found: SharedGroups | None = None

    def forget(self) -> None:
        """Rows have been given to other requests."""
        self._decodes = np.empty(0, np.int64)
        self._found = None

    def among(self, plan: StepPlan) -> SharedGroups | None:
        """Of the step; None where nobody shares. What rows share does not change while they decode."""
        decodes = plan.rows[: plan.num_decodes]
        if not np.array_equal(decodes, self._decodes):
            self._decodes = decodes.copy()
            self._found = self._find(decodes)
        return self._found

    def _find(self, decodes: npt.NDArray[np.int64]) -> SharedGroups | None:
        column = self._column
        long_enough = np.flatnonzero(self._rows.num_blocks[decodes] > column + 1)
        if column < 0 or len(long_enough) < 2:
            return None
        blocks = self._rows.block_tables[decodes[long_enough], column]
        order = np.argsort(blocks, kind="stable")
        borders = np.flatnonzero(np.diff(blocks[order])) + 1
        members: list[npt.NDArray[np.int64]] = []
        group_tokens: list[int] = []
        for cluster in np.split(long_enough[order], borders):
            shared = self._shared_tokens(decodes[cluster]) if len(cluster) > 1 else 0
            if shared:
                parts = np.array_split(cluster, -(-len(cluster) // self._most_members))
                members += parts
                group_tokens += [shared] * len(parts)
        return self._groups(len(decodes), members, group_tokens) if members else None

    def _shared_tokens(self, rows: npt.NDArray[np.int64]) -> int:
        """Tokens that all of `rows` have in the same blocks, as far as whole tiles of keys go."""
        width = int(self._rows.num_blocks[rows].min())
        tables = self._rows.block_tables[rows, :width]
        same = (tables == tables[0]).all(axis=0)
        blocks = width if same.all() else int(same.argmin())
        return blocks * self._rows.limits.block_size // SHARED_TOKENS * SHARED_TOKENS

    def _groups(
        self, num_decodes: int, members: list[npt.NDArray[np.int64]], group_tokens: list[int]
    ) -> SharedGroups:
        padded = np.full((len(members), self._most_members), -1, np.int32)
        tokens = np.zeros(num_decodes, np.int32)
        for group, (seqs, shared) in enumerate(zip(members, group_tokens, strict=True)):
            padded[group, : len(seqs)] = seqs
            tokens[seqs] = shared
        return SharedGroups(padded, np.array(group_tokens, np.int32), tokens)
