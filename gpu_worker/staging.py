"""Small arrays from the host to the device, all of a step's in one copy that nobody waits for."""

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

HostArray = npt.NDArray[np.generic]

# Every array begins at a multiple of this many bytes, so that kernels can use wide loads.
_ALIGNMENT = 16


class Upload(Protocol):
    """The arrays of one step: `add` them all, `send` once, then `get` each on the device."""

    def add(self, array: HostArray) -> int:
        """Keeps `array` for `send` and returns its number; it must not change until then."""
        ...

    def send(self) -> None:
        """Starts the copy. Tensors are ready for whatever is queued on the device after this."""
        ...

    def get(self, number: int) -> torch.Tensor:
        """The array `add` gave this number, on the device, of the same shape and dtype."""
        ...


class Stager(Protocol):
    """Makes one `Upload` after another."""

    def begin(self) -> Upload: ...


def stager_for(device: torch.device) -> Stager:
    """The right one for the device."""
    return PinnedStager(device) if device.type == "cuda" else HostStager()


class HostStager:
    """Where the device is the CPU, there is nothing to copy."""

    def begin(self) -> "HostUpload":
        return HostUpload()


class HostUpload:
    def __init__(self) -> None:
        self._arrays: list[HostArray] = []

    def add(self, array: HostArray) -> int:
        self._arrays.append(array)
        return len(self._arrays) - 1

    def send(self) -> None:
        pass

    def get(self, number: int) -> torch.Tensor:
        # What came out of a message is read-only, which a tensor cannot be.
        return torch.from_numpy(np.require(self._arrays[number], requirements=["C", "W"]))


class PinnedStager:
    """Packs arrays into page-locked memory, from which a GPU copies by itself.

    Buffers take turns. A buffer is written again only after the copy out of it is done, however many steps
    are in flight; with as many buffers as steps there is never a wait.
    """

    def __init__(self, device: torch.device, depth: int = 4, capacity: int = 1 << 20) -> None:
        """`capacity`: bytes of each of `depth` buffers to begin with; they grow."""
        self._device = device
        self._buffers = [_PinnedBuffer(capacity) for _ in range(depth)]
        self._turn = 0

    def begin(self) -> "PinnedUpload":
        buffer = self._buffers[self._turn]
        self._turn = (self._turn + 1) % len(self._buffers)
        return PinnedUpload(buffer, self._device)


class _PinnedBuffer:
    def __init__(self, capacity: int) -> None:
        self.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self.reserve(capacity)

    def reserve(self, capacity: int) -> None:
        """Room for `capacity` bytes; what was in it is lost."""
        self.memory = torch.empty(capacity, dtype=torch.uint8, pin_memory=True)
        self.view = self.memory.numpy()


class PinnedUpload:
    def __init__(self, buffer: _PinnedBuffer, device: torch.device) -> None:
        self._buffer = buffer
        self._device = device
        self._arrays: list[HostArray] = []
        self._tensors: list[torch.Tensor] = []

    def add(self, array: HostArray) -> int:
        self._arrays.append(array)
        return len(self._arrays) - 1

    def send(self) -> None:
        offsets, end = [], 0
        for array in self._arrays:
            offsets.append(end)
            end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        on_device = self._copy(offsets, end)
        for array, offset in zip(self._arrays, offsets, strict=True):
            flat = on_device[offset : offset + array.nbytes]
            self._tensors.append(flat.view(_torch_dtype(array)).view(array.shape))

    def _copy(self, offsets: list[int], end: int) -> torch.Tensor:
        buffer = self._buffer
        buffer.copied.synchronize()
        if end > len(buffer.view):
            buffer.reserve(1 << (end - 1).bit_length())
        for array, offset in zip(self._arrays, offsets, strict=True):
            place = buffer.view[offset : offset + array.nbytes].view(array.dtype)
            place[:] = array.ravel()
        on_device = torch.empty(end, dtype=torch.uint8, device=self._device)
        on_device.copy_(buffer.memory[:end], non_blocking=True)
        buffer.copied.record()
        return on_device

    def get(self, number: int) -> torch.Tensor:
        return self._tensors[number]


_DTYPES = {
    np.dtype(np.int32): torch.int32,
    np.dtype(np.int64): torch.int64,
    np.dtype(np.float32): torch.float32,
}


def _torch_dtype(array: HostArray) -> torch.dtype:
    return _DTYPES[array.dtype]
