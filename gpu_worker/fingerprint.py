"""A name for what a worker's cache contents depend on."""

import hashlib
from pathlib import Path

import torch

# Bytes read at each end of a file of weights: enough to tell fine-tunes apart, little to read.
_SAMPLE = 1 << 20


def model_fingerprint(folder: Path, load_format: str, seed: int, dtype: torch.dtype) -> str:
    """Equal for workers whose caches are interchangeable: the same weights in the same dtype.

    Made of the folder's name, a digest of its configuration and samples of its weights, and the dtype.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    if load_format == "dummy":
        digest.update(f"dummy {seed}".encode())
    else:
        for file in sorted(folder.glob("*.safetensors")):
            _add_samples(digest, file)
    return f"{folder.name}-{digest.hexdigest()[:16]}-{str(dtype).removeprefix('torch.')}"


def _add_samples(digest: "hashlib._Hash", file: Path) -> None:
    size = file.stat().st_size
    digest.update(f"{file.name} {size}".encode())
    with file.open("rb") as data:
        digest.update(data.read(_SAMPLE))
        data.seek(max(0, size - _SAMPLE))
        digest.update(data.read(_SAMPLE))
