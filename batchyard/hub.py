"""From the name of a model to a folder on this machine."""

import re
from pathlib import Path

from batchyard.errors import ModelError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")

_WANTED = ["*.json", "*.safetensors", "*.jinja", "tokenizer*", "merges.txt", "vocab.txt"]
# The same weights again, in the formats of other programs.
_NOT_WANTED = ["original/*", "consolidated*", "onnx/*", "openvino/*"]


def resolve_model(name: str) -> Path:
    """The absolute folder of `demo`, of a local folder, or of a Hugging Face model, downloaded if need be.

    Raises ModelError, one line that says what was tried and what to do.
    """
    if name == "demo":
        from batchyard.demo import MODEL_DIR

        return MODEL_DIR
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if folder.exists():
        raise ModelError(f"--model {name}: this is a file; give the folder that holds config.json")
    if not _HUB_ID.fullmatch(name):
        raise ModelError(f"--model {name}: no such folder")
    return _download(name)


def _download(name: str) -> Path:
    # Imported here, for only those who need a download pay for it.
    from huggingface_hub import constants, errors, snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=_WANTED, ignore_patterns=_NOT_WANTED))
    except errors.GatedRepoError as error:
        advice = f"accept its licence on {constants.ENDPOINT}/{name}, then `hf auth login` or set HF_TOKEN"
        raise ModelError(f"--model {name}: Hugging Face guards this model: {advice}") from error
    except errors.RepositoryNotFoundError as error:
        advice = "check the name; for a private one, `hf auth login` or set HF_TOKEN"
        raise ModelError(f"--model {name}: no such folder or model on Hugging Face: {advice}") from error
    except errors.LocalEntryNotFoundError as error:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "Hugging Face does not answer"
        advice = f"it is not in {constants.HF_HUB_CACHE}: give a folder, or go online"
        raise ModelError(f"--model {name}: no such folder, {why}, and {advice}") from error
    except Exception as error:  # a proxy may answer anything, and the library then raise anything
        lines = str(error).splitlines() or [type(error).__name__]
        raise ModelError(f"--model {name}: the download from Hugging Face failed: {lines[0]}") from error
