"""The safetensors files of a model folder."""

import math
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from batchyard.errors import ModelError
from gpu_worker.models.config_fields import read_json_object

_DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_LFS_POINTER = b"version https://git-lfs"
_PICKLED = ("*.bin", "*.pt", "*.pth")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as a file's header describes it; `dtype` in the words of safetensors (F32, BF16, ...)."""

    file: Path
    shape: tuple[int, ...]
    dtype: str

    @property
    def num_bytes(self) -> int:
        """Bytes in the file, of a tensor that `is_float`."""
        return math.prod(self.shape) * _DTYPE_BYTES[self.dtype]

    @property
    def is_float(self) -> bool:
        """Whether it is of a plain floating-point type, not a quantized or an integer one."""
        return self.dtype in _DTYPE_BYTES


def find_shards(folder: Path) -> list[Path]:
    """The files that hold the model: model.safetensors, or what the index names, or every *.safetensors.

    Raises ModelError if there is none, or if the index is damaged or names a file that is not there.
    """
    single = folder / "model.safetensors"
    if single.exists():
        return [single]
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return _indexed_shards(index)
    # Mistral's own format lies beside the Hugging Face one in some repositories.
    shards = sorted(path for path in folder.glob("*.safetensors") if not path.match("consolidated*"))
    if shards:
        return shards
    if any(path for pattern in _PICKLED for path in folder.glob(pattern)):
        raise ModelError(f"{folder} has pickled weights only; convert them to safetensors")
    raise ModelError(
        f"{folder} has no *.safetensors files, and no others are loaded; download the model's weights"
    )


def _indexed_shards(index: Path) -> list[Path]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ModelError(f"{index}: weight_map must map tensor names to file names; download it again")
    shards = [index.parent / name for name in sorted(set(weight_map.values()))]
    for shard in shards:
        if not shard.exists():
            raise ModelError(f"{shard} is missing, but {index.name} names it; download the rest of the model")
    return shards


def read_headers(shards: Sequence[Path]) -> dict[str, StoredTensor]:
    """Every tensor in the files by name. Raises ModelError for a damaged file or a name that comes twice."""
    stored: dict[str, StoredTensor] = {}
    for file in shards:
        with _open(file) as shard:
            for name in shard.offset_keys():
                if name in stored:
                    other = stored[name].file.name
                    raise ModelError(f"{file}: {name} is also in {other}; remove one of the files")
                part = shard.get_slice(name)
                stored[name] = StoredTensor(file, tuple(part.get_shape()), part.get_dtype())
    return stored


def read_tensors(shards: Sequence[Path], names: Collection[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors called `names`, one at a time in the order they lie on disk.

    They are views of a memory map: nothing is read until it is copied from.
    """
    for file in shards:
        with _open(file) as shard:
            for name in shard.offset_keys():
                if name in names:
                    yield name, shard.get_tensor(name)


def _open(file: Path) -> safe_open:
    try:
        return safe_open(file, framework="pt", device="cpu")
    except OSError as error:
        # safetensors calls a file that may not be read one that is not there.
        why = error if os.access(file, os.R_OK) else "it may not be read by this user"
        raise ModelError(f"{file} cannot be read ({why}); check the model folder") from error
    except SafetensorError as error:
        with file.open("rb") as raw:
            is_pointer = raw.read(len(_LFS_POINTER)) == _LFS_POINTER
        if is_pointer:
            raise ModelError(f"{file} is only a Git LFS pointer; run `git lfs pull` in its folder") from error
        raise ModelError(f"{file} is truncated or damaged ({error}); download it again") from error
