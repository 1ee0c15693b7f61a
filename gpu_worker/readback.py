"""Results from the device to the host, on a stream of their own, so that the next step need not wait."""

from collections.abc import Sequence
from typing import Protocol

import torch


class Pending(Protocol):
    """Tensors on their way to the host."""

    def wait(self) -> list[torch.Tensor]:
        """Waits until they are there, without spinning; in the order they were given."""
        ...


class Readback(Protocol):
    """Starts copies to the host."""

    def start(self, tensors: Sequence[torch.Tensor]) -> Pending:
        """Copies what the work queued so far on the device makes of `tensors`. Does not wait."""
        ...


def readback_for(device: torch.device) -> Readback:
    """The right one for the device."""
    return StreamReadback(device) if device.type == "cuda" else HostReadback()


class HostReadback:
    """Where the device is the CPU, everything is there."""

    def start(self, tensors: Sequence[torch.Tensor]) -> "Arrived":
        return Arrived(list(tensors))


class Arrived:
    def __init__(self, tensors: list[torch.Tensor]) -> None:
        self._tensors = tensors

    def wait(self) -> list[torch.Tensor]:
        return self._tensors


class StreamReadback:
    """Copies on a second CUDA stream into page-locked memory."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def start(self, tensors: Sequence[torch.Tensor]) -> "Copying":
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            copies = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in tensors]
            for copy, tensor in zip(copies, tensors, strict=True):
                copy.copy_(tensor, non_blocking=True)
            done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            done.record(self._stream)
        return Copying(list(tensors), copies, done)


class Copying:
    def __init__(
        self, sources: list[torch.Tensor], copies: list[torch.Tensor], done: torch.cuda.Event
    ) -> None:
        # The allocator may give a source's memory away as soon as nobody refers to it: keep it till the end.
        self._sources = sources
        self._copies = copies
        self._done = done

    def wait(self) -> list[torch.Tensor]:
        self._done.synchronize()
        self._sources.clear()
        return self._copies
