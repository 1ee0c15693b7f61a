"""From a model folder to a model on a device."""

from pathlib import Path
from typing import Literal

import torch

from batchyard.errors import ConfigError, ModelError
from gpu_worker.kernels.ops import Ops
from gpu_worker.models.config import DTYPES, ModelConfig, load_config
from gpu_worker.models.fill import Progress, fill_from_checkpoint, fill_randomly
from gpu_worker.models.llama import LlamaModel
from gpu_worker.models.weights import LlamaWeights, allocate_weights, checkpoint_names

_DTYPE_ALIASES = {"half": "float16", "float": "float32"}


def resolve_dtype(config: ModelConfig, requested: str, device: torch.device) -> torch.dtype:
    """The dtype to run in. "auto": on a GPU the checkpoint's (bfloat16 if it does not say), on a CPU float32.

    Raises ConfigError for a name that is not auto, float32 (or float), float16 (or half) or bfloat16.
    """
    if requested == "auto":
        return torch.float32 if device.type == "cpu" else config.dtype or torch.bfloat16
    dtype = DTYPES.get(_DTYPE_ALIASES.get(requested, requested))
    if dtype is None:
        raise ConfigError(f"dtype must be one of auto, {', '.join(DTYPES)}, not {requested!r}")
    return dtype


def load_model(
    folder: Path,
    *,
    load_format: Literal["auto", "dummy"],
    dtype: torch.dtype,
    device: torch.device,
    ops: Ops,
    max_model_len: int,
    seed: int,
    progress: Progress,
) -> LlamaModel:
    """Build the model in `folder` on `device`.

    "auto" reads the folder's safetensors files; "dummy" needs config.json alone and makes random weights from
    `seed`. `progress(bytes_done, bytes_total)` is called after every tensor. Raises ModelError if the folder
    does not hold a model that can be run or the weights do not fit on the device, ConfigError if
    `max_model_len` is more than the model supports.
    """
    config = load_config(folder)
    if max_model_len > config.max_context:
        raise ConfigError(
            f"max_model_len {max_model_len} is more than the {config.max_context} tokens {folder} supports"
        )
    weights = _allocate(config, dtype, device, folder)
    parameters = checkpoint_names(weights, config)
    if load_format == "dummy":
        fill_randomly(parameters, device, seed, progress)
    else:
        fill_from_checkpoint(parameters, folder, progress)
    return LlamaModel(config, weights, ops, max_model_len)


def _allocate(config: ModelConfig, dtype: torch.dtype, device: torch.device, folder: Path) -> LlamaWeights:
    try:
        return allocate_weights(config, dtype, device)
    except RuntimeError as error:  # torch.OutOfMemoryError on a GPU, its parent class on a CPU
        raise ModelError(f"{folder}: its weights in {dtype} do not fit in the memory of {device}") from error
