"""What is measured: operations on buffers of their own, beside others' ways to do the same."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from bench.kernels.work import LLAMA_8B, QWEN3_06B, Model
from gpu_worker.kernels.device_traits import DeviceTraits
from gpu_worker.kernels.paged_attention import PagedAttention
from gpu_worker.kernels.triton_ops import TritonOps

Launch = Callable[[], object]
EPS = 1e-5
# Buffers of one operation at most, and at least.
_MOST_COPIES, _LEAST_COPIES = 128, 2


@dataclass(frozen=True, slots=True)
class Sweep:
    """Sizes to measure. `chunks` are (query, context); `rotation` is bytes of buffers to go through in turn.

    The rotation is many times the L2 cache, so that an operation finds there only what it would find in a
    model: the activations of few rows, never weights, keys or values.
    """

    decode_rows: Sequence[int] = (1, 8, 32, 128, 256)
    contexts: Sequence[int] = (384, 2048, 8192)
    chunks: Sequence[tuple[int, int]] = ((512, 0), (2048, 0), (8192, 0), (8192, 24_000), (64, 2048))
    product_rows: Sequence[int] = (1, 8, 16, 32)
    rows: Sequence[int] = (1, 32, 256, 2048, 8192)
    tokens: Sequence[int] = (64, 512, 2048, 8192)
    gathered: Sequence[int] = (2048, 8192, 32_000)
    sampling_rows: Sequence[int] = (1, 32, 128)
    rotation: int = 600_000_000
    most_cache: int = 40_000_000_000


class Bench:
    """The device, one model's sizes, and the operations to measure with them."""

    def __init__(self, model: Model, device: torch.device, traits: DeviceTraits, sweep: Sweep) -> None:
        self.model = model
        self.device = device
        self.sweep = sweep
        self.ops = TritonOps(traits)
        self.attention = PagedAttention(traits)

    def copies(self, size: int) -> int:
        """How many buffers of `size` bytes to go through in turn."""
        return max(_LEAST_COPIES, min(_MOST_COPIES, -(-self.sweep.rotation // size)))

    def normal(
        self, *shape: int, deviation: float = 1.0, dtype: torch.dtype = torch.bfloat16
    ) -> torch.Tensor:
        """Random numbers around 0."""
        return torch.empty(shape, dtype=dtype, device=self.device).normal_(std=deviation)

    def ints(self, *values: int) -> torch.Tensor:
        """A vector of int32."""
        return torch.tensor(values, dtype=torch.int32, device=self.device)


@dataclass(frozen=True, slots=True)
class Case:
    """One line of a table.

    `work` is in bytes or FLOP, of one launch. `ours`, and each of `rivals` by its name, are launches of the
    same operation on buffers of their own; a rival is not there where it cannot do the same.
    """

    labels: tuple[str, ...]
    work: int
    ours: Sequence[Launch]
    rivals: Mapping[str, Sequence[Launch]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Topic:
    """One table for each of `models`; `unit` is TB/s or TFLOP/s, `columns` are the names of the labels."""

    title: str
    unit: str
    columns: tuple[str, ...]
    rivals: tuple[str, ...]
    cases: Callable[[Bench], Iterator[Case]]
    models: tuple[Model, ...] = (LLAMA_8B, QWEN3_06B)
