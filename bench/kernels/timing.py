"""Time on the GPU, and what the GPU can do at best."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from bench.kernels.cases import Launch
from bench.kernels.read_stream import read_stream

# Microseconds of one launch, of some that are launched in turn.
Timer = Callable[[Sequence[Launch]], float]
# Read at once, or copied to as many: many times the L2 cache.
_STREAMED = 4_000_000_000
# Rows, columns and inputs of a product that is bound by the tensor cores.
_SQUARE = 8192


class GraphTimer:
    """Times launches in a CUDA graph, in which the host has no part; the best of `repeats`."""

    def __init__(self, repeats: int) -> None:
        self._repeats = repeats
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def __call__(self, launches: Sequence[Launch]) -> float:
        """Microseconds of one launch. Raises RuntimeError for what cannot run, or not in a graph."""
        torch.cuda.synchronize()
        with torch.cuda.stream(self._stream):
            # All of them compile, and allocate what they keep, before they are captured.
            for launch in launches:
                launch()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            # Kept, so that results are written to memory of their own: the L2 cache would hide the writes.
            results = [launch() for launch in launches]
        with torch.cuda.stream(self._stream):
            best = min(self._replay(graph) for _ in range(self._repeats))
        del results
        return 1e3 * best / len(launches)

    def _replay(self, graph: torch.cuda.CUDAGraph) -> float:
        """Milliseconds of all launches."""
        started, ended = _event(), _event()
        # While it runs the host gets the one that counts under way.
        graph.replay()
        started.record()
        graph.replay()
        ended.record()
        ended.synchronize()
        return float(started.elapsed_time(ended))


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def time_rival(timer: Timer, name: str, launches: Sequence[Launch]) -> float | None:
    """As `timer`; None, and the reason on standard error, if this device or version has no such way."""
    try:
        return timer(launches)
    except RuntimeError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return None


@dataclass(frozen=True, slots=True)
class Limits:
    """Of the GPU, as measured: TB/s of a stream that is only read, and of one that is copied; TFLOP/s."""

    read: float
    copy: float
    products: float

    def of(self, unit: str) -> float:
        """What a figure in `unit`, TB/s or TFLOP/s, is held against."""
        return {"TB/s": max(self.read, self.copy), "TFLOP/s": self.products}[unit]


def measure_limits(
    timer: Timer, device: torch.device, streamed: int = _STREAMED, square: int = _SQUARE
) -> Limits:
    """`streamed` is in bytes, `square` the side of the matrices."""
    numbers = torch.ones(streamed // 4, device=device)
    read = streamed / timer([lambda: read_stream(numbers)] * 2) / 1e6
    target = torch.empty_like(numbers)
    copy = 2 * streamed / timer([lambda: target.copy_(numbers)] * 2) / 1e6
    left, right = (torch.randn(square, square, device=device).bfloat16() for _ in range(2))
    products = 2 * square**3 / timer([lambda: left @ right] * 8) / 1e6
    return Limits(read, copy, products)
