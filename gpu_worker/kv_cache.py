"""How many blocks the KV cache has, and the memory for them."""

from dataclasses import dataclass

import torch

from batchyard.config import WorkerSettings
from batchyard.errors import ConfigError
from gpu_worker.models import ModelConfig

_GIB = 1 << 30
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class CacheShape:
    """Keys and values of all layers, in blocks of `block_size` tokens."""

    num_layers: int
    block_size: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @classmethod
    def of(cls, config: ModelConfig, block_size: int, dtype: torch.dtype) -> "CacheShape":
        """What `config` needs."""
        return cls(config.num_layers, block_size, config.num_kv_heads, config.head_dim, dtype)

    @property
    def block_bytes(self) -> int:
        """Bytes of one block, over all layers."""
        per_layer = 2 * self.block_size * self.num_kv_heads * self.head_dim
        return self.num_layers * per_layer * self.dtype.itemsize

    def allocate(self, num_blocks: int, device: torch.device) -> torch.Tensor:
        """[num_layers, 2, num_blocks, block_size, num_kv_heads, head_dim], zeros: keys, then values.

        One piece, so that a block of all layers can be copied at once. Raises ConfigError when the memory is
        not there.
        """
        shape = (self.num_layers, 2, num_blocks, self.block_size, self.num_kv_heads, self.head_dim)
        try:
            return torch.zeros(shape, dtype=self.dtype, device=device)
        except RuntimeError as error:  # torch.OutOfMemoryError on a GPU, its parent class on a CPU
            wanted = _size(num_blocks * self.block_bytes)
            raise ConfigError(
                f"{num_blocks} blocks of KV cache ({wanted}) do not fit in the memory of {device}: "
                "lower --num-gpu-blocks, --gpu-memory-utilization or --cpu-kv-cache-gb"
            ) from error


def by_layer(memory: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(keys, values) of each layer, [num_blocks, block_size, num_kv_heads, head_dim], contiguous views."""
    return [(layer[0], layer[1]) for layer in memory.unbind()]


def count_blocks(
    shape: CacheShape, settings: WorkerSettings, max_model_len: int, available: int, flag: str
) -> int:
    """Blocks of a cache that may take `available` bytes, a size set by the setting `flag`.

    `num_gpu_blocks` overrides that. Never more than all rows could hold at their longest. Raises ConfigError
    when not even one sequence of `max_model_len` tokens fits.
    """
    per_row = -(-max_model_len // shape.block_size)
    if settings.num_gpu_blocks is not None:
        tokens = settings.num_gpu_blocks * shape.block_size
        if tokens < max_model_len:
            raise ConfigError(
                f"--num-gpu-blocks {settings.num_gpu_blocks} holds {tokens} "
                f"tokens, less than one sequence of --max-model-len {max_model_len}: "
                f"give at least {per_row} blocks, or lower --max-model-len"
            )
        return settings.num_gpu_blocks
    fitting = max(0, available) // shape.block_bytes
    if fitting < per_row:
        raise ConfigError(
            f"one sequence of --max-model-len {max_model_len} needs "
            f"{_size(per_row * shape.block_bytes)} of KV cache, but there are "
            f"{_size(max(0, available))}, enough for {fitting * shape.block_size} tokens: "
            f"lower --max-model-len or raise {flag}"
        )
    return min(fitting, per_row * settings.max_num_seqs)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.2f} GiB" if num_bytes >= _GIB // 10 else f"{num_bytes / _MIB:.2f} MiB"
