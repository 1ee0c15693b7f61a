"""Putting values into allocated parameters: from a checkpoint, or random ones."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from batchyard.errors import ModelError
from gpu_worker.models.checkpoint import StoredTensor, find_shards, read_headers, read_tensors

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""

_EMBEDDING = "model.embed_tokens.weight"
_LM_HEAD = "lm_head.weight"
# Older checkpoints carry the rotary frequencies, which follow from the configuration.
_HARMLESS_SUFFIX = ".rotary_emb.inv_freq"
_DUMMY_STD = 0.02


def fill_from_checkpoint(parameters: Mapping[str, torch.Tensor], folder: Path, progress: Progress) -> None:
    """Copy the safetensors files of `folder` into `parameters`, views by checkpoint name.

    One tensor at a time straight from a memory map, converted to the parameter's dtype on the way. Everything
    is checked before the first byte is copied. `progress` counts bytes of the files. Raises ModelError for a
    file that is missing or damaged, and for a tensor that is missing, unknown or of the wrong shape or type.
    """
    shards = find_shards(folder)
    stored = read_headers(shards)
    targets = dict(parameters)
    if _LM_HEAD not in parameters:
        _settle_tied_head(targets, stored, shards)
    _check_names(targets, stored, folder)
    for name, target in targets.items():
        _check_tensor(name, target, stored[name])
    done, total = 0, sum(stored[name].num_bytes for name in targets)
    for name, tensor in read_tensors(shards, targets):
        targets[name].copy_(tensor)
        done += stored[name].num_bytes
        progress(done, total)


def fill_randomly(
    parameters: Mapping[str, torch.Tensor], device: torch.device, seed: int, progress: Progress
) -> None:
    """Normal values of standard deviation 0.02, made on `device`, where the parameters are; norms become one.

    The same values for the same seed, dtype and kind of device. `progress` counts bytes of the parameters.
    """
    generator = torch.Generator(device).manual_seed(seed)
    done, total = 0, sum(parameter.nbytes for parameter in parameters.values())
    for name, parameter in parameters.items():
        if name.endswith("norm.weight"):
            parameter.fill_(1.0)
        else:
            parameter.normal_(0.0, _DUMMY_STD, generator=generator)
        done += parameter.nbytes
        progress(done, total)


def _settle_tied_head(
    targets: dict[str, torch.Tensor], stored: dict[str, StoredTensor], shards: list[Path]
) -> None:
    """A tied model needs one of the two tensors; checkpoints hold the one, the other, or both.

    Changes `targets` to read the one that is there, and forgets a `lm_head` that says nothing new.
    """
    head = stored.get(_LM_HEAD)
    if head is None:
        return
    if _EMBEDDING not in stored:
        targets[_LM_HEAD] = targets.pop(_EMBEDDING)
        return
    both = dict(read_tensors(shards, (_EMBEDDING, _LM_HEAD)))
    if not torch.equal(both[_EMBEDDING], both[_LM_HEAD].to(both[_EMBEDDING].dtype)):
        raise ModelError(
            f"{head.file}: {_LM_HEAD} differs from the embedding it should be tied to; "
            'set "tie_word_embeddings": false in config.json'
        )
    del stored[_LM_HEAD]


def _check_names(
    targets: Mapping[str, torch.Tensor], stored: Mapping[str, StoredTensor], folder: Path
) -> None:
    missing = [name for name in targets if name not in stored]
    if missing:
        raise ModelError(f"{folder} has no tensor {_first_of(missing)}; is config.json of this model?")
    unknown = [name for name in stored if name not in targets and not name.endswith(_HARMLESS_SUFFIX)]
    if unknown:
        raise ModelError(
            f"{stored[unknown[0]].file}: the model has no place for tensor {_first_of(unknown)}; "
            "is config.json of this model?"
        )


def _check_tensor(name: str, target: torch.Tensor, stored: StoredTensor) -> None:
    if stored.shape != tuple(target.shape):
        raise ModelError(
            f"{stored.file}: {name} has shape {list(stored.shape)}, but config.json asks for "
            f"{list(target.shape)}"
        )
    if not stored.is_float:
        raise ModelError(
            f"{stored.file}: {name} is stored as {stored.dtype}; quantized weights are not supported"
        )


def _first_of(names: list[str]) -> str:
    more = f" and {len(names) - 1} others" if len(names) > 1 else ""
    return f"{names[0]}{more}"
