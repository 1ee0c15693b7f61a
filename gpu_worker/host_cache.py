"""Host memory below the KV cache, and the copies between them.

A block is 2 * num_layers pieces on the device, one per layer for keys and one for values, and one piece on
the host. On CUDA a kernel gathers many blocks into a buffer on the device, whence each run of neighbouring
host blocks is one copy; loads go the same way back. So the copy engines see megabytes, not the pieces of
32 KiB.

Nothing here waits for a step, or makes one wait: the scheduler keeps moves and steps apart, as
protos/step.proto says.
"""

import itertools
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from batchyard.errors import ConfigError

Ids = npt.NDArray[np.int32]

STAGING_BYTES = 64 << 20  # on the device, for each of the two directions


class HostCache(Protocol):
    """Host blocks. One thread may save while another loads; both return when the copies are done."""

    num_blocks: int

    def save(self, blocks: Ids, host_blocks: Ids) -> None:
        """Copies device block blocks[i] to host block host_blocks[i]."""
        ...

    def load(self, blocks: Ids, host_blocks: Ids) -> None:
        """Copies host block host_blocks[i] to device block blocks[i]."""
        ...

    def close(self) -> None:
        """Gives the memory back; nothing may be in motion."""
        ...


def host_cache_for(memory: torch.Tensor, num_blocks: int) -> HostCache:
    """`num_blocks` host blocks below `memory`, as `CacheShape.allocate` gives it.

    Raises ConfigError when the memory is not there.
    """
    try:
        return PinnedHostCache(memory, num_blocks) if memory.is_cuda else PlainHostCache(memory, num_blocks)
    except RuntimeError as error:
        raise ConfigError(
            f"{num_blocks} blocks do not fit in host memory ({error}): lower --host-cache-gb"
        ) from error


def _by_block(memory: torch.Tensor) -> torch.Tensor:
    """`memory` as [num_blocks, pieces, words] int64, without a copy: wide words are copied fastest."""
    return memory.flatten(0, 1).flatten(2).view(torch.int64).transpose(0, 1)


def _index(ids: Ids, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(ids.astype(np.int64)).to(device)


class PlainHostCache:
    """Where the device is the CPU."""

    def __init__(self, memory: torch.Tensor, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._blocks = _by_block(memory)
        self._host = torch.empty((num_blocks, *self._blocks.shape[1:]), dtype=torch.int64)

    def save(self, blocks: Ids, host_blocks: Ids) -> None:
        cpu = self._host.device
        self._host.index_copy_(0, _index(host_blocks, cpu), self._blocks.index_select(0, _index(blocks, cpu)))

    def load(self, blocks: Ids, host_blocks: Ids) -> None:
        cpu = self._host.device
        self._blocks.index_copy_(0, _index(blocks, cpu), self._host.index_select(0, _index(host_blocks, cpu)))

    def close(self) -> None:
        pass


class PinnedHostCache:
    """Page-locked memory, with a CUDA stream for each direction."""

    def __init__(self, memory: torch.Tensor, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._device = memory.device
        self._blocks = _by_block(memory)
        # Not by torch's allocator of pinned memory, which rounds up to a power of two.
        self._host = torch.zeros((num_blocks, *self._blocks.shape[1:]), dtype=torch.int64)
        self._cuda = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        torch.cuda.check_error(int(self._cuda.cudaHostRegister(self._host.data_ptr(), self._host.nbytes, 0)))
        self._up = _Direction(self._blocks)
        self._down = _Direction(self._blocks)

    def save(self, blocks: Ids, host_blocks: Ids) -> None:
        with torch.cuda.stream(self._down.stream):
            for first, end in self._down.rounds(len(blocks)):
                staging = self._down.staging[: end - first]
                torch.index_select(self._blocks, 0, _index(blocks[first:end], self._device), out=staging)
                for start, stop in _runs(host_blocks[first:end]):
                    host_block = int(host_blocks[first + start])
                    target = self._host[host_block : host_block + stop - start]
                    target.copy_(staging[start:stop], non_blocking=True)
        self._down.wait()

    def load(self, blocks: Ids, host_blocks: Ids) -> None:
        with torch.cuda.stream(self._up.stream):
            for first, end in self._up.rounds(len(blocks)):
                staging = self._up.staging[: end - first]
                for start, stop in _runs(host_blocks[first:end]):
                    host_block = int(host_blocks[first + start])
                    source = self._host[host_block : host_block + stop - start]
                    staging[start:stop].copy_(source, non_blocking=True)
                self._blocks.index_copy_(0, _index(blocks[first:end], self._device), staging)
        self._up.wait()

    def close(self) -> None:
        torch.cuda.check_error(int(self._cuda.cudaHostUnregister(self._host.data_ptr())))


class _Direction:
    """A stream and a buffer on the device, used by one thread."""

    def __init__(self, blocks: torch.Tensor) -> None:
        self.stream = torch.cuda.Stream(blocks.device)  # type: ignore[no-untyped-call]
        self._done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        block_bytes = blocks[0].nbytes
        self._capacity = max(1, STAGING_BYTES // block_bytes)
        self.staging = torch.empty(
            (self._capacity, *blocks.shape[1:]), dtype=blocks.dtype, device=blocks.device
        )

    def rounds(self, count: int) -> Iterator[tuple[int, int]]:
        """`count` blocks, as many at a time as the buffer holds. The stream orders the rounds."""
        for first in range(0, count, self._capacity):
            yield first, min(first + self._capacity, count)

    def wait(self) -> None:
        """Waits for all that is queued, without spinning."""
        self._done.record(self.stream)
        self._done.synchronize()


def _runs(ids: Ids) -> Iterator[tuple[int, int]]:
    """Where runs of consecutive ids begin and end in `ids`."""
    borders = [0, *(np.flatnonzero(np.diff(ids) != 1) + 1).tolist(), len(ids)]
    yield from itertools.pairwise(borders)
