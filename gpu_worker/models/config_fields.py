"""Typed reading of a model's JSON files, with errors that name the file and the field."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from batchyard.errors import ModelError


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in the JSON file `path`. Raises ModelError if it cannot be read or is something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}); check the model folder") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON ({error}); download it again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} must hold a JSON object, not {_show(value)}; download it again")
    return value


class ConfigFields:
    """The fields of one JSON object. As in `transformers`, null means the same as absent.

    Every reader takes a default for an absent field; without one the field is required. All raise ModelError.
    """

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        """`source` begins every message: the file, and the field within it if `values` is nested."""
        self._values = values
        self._source = source

    def __contains__(self, name: str) -> bool:
        """Whether the field is written, be it as null."""
        return name in self._values

    def error(self, problem: str) -> ModelError:
        """A ModelError about this object."""
        return ModelError(f"{self._source}: {problem}")

    def count(self, name: str, default: int | None = None, at_least: int = 1) -> int:
        """A whole number."""
        value = self._values.get(name)
        value = default if value is None else value
        if value is None:
            raise self.error(f"{name} is missing; the model cannot be built without it")
        if not _is_int(value) or value < at_least:
            raise self.error(f"{name} must be a whole number of at least {at_least}, not {_show(value)}")
        return int(value)

    def optional_count(self, name: str) -> int | None:
        """A whole number of at least 1, or None."""
        return None if self._values.get(name) is None else self.count(name)

    def positive(self, name: str, default: float | None = None) -> float:
        """A positive finite number."""
        value = self._values.get(name)
        value = default if value is None else value
        if value is None:
            raise self.error(f"{name} is missing; the model cannot be built without it")
        if not (_is_int(value) or isinstance(value, float)) or not 0 < value < math.inf:
            raise self.error(f"{name} must be a positive number, not {_show(value)}")
        return float(value)

    def optional_positive(self, name: str) -> float | None:
        """A positive finite number, or None."""
        return None if self._values.get(name) is None else self.positive(name)

    def flag(self, name: str, default: bool) -> bool:
        """true or false."""
        value = self._values.get(name)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self.error(f"{name} must be true or false, not {_show(value)}")
        return value

    def text(self, name: str, default: str) -> str:
        """A string."""
        value = self._values.get(name)
        value = default if value is None else value
        if not isinstance(value, str):
            raise self.error(f"{name} must be a string, not {_show(value)}")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings, empty if absent."""
        value = self._values.get(name) or []
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(f"{name} must be a list of strings, not {_show(value)}")
        return tuple(value)

    def token_ids(self, name: str) -> tuple[int, ...]:
        """A token id or a list of them, empty if absent."""
        value = self._values.get(name)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if not all(_is_int(item) and item >= 0 for item in ids):
            raise self.error(f"{name} must be a token id or a list of them, not {_show(value)}")
        return tuple(ids)

    def nested(self, name: str) -> "ConfigFields | None":
        """An object's fields, or None if it is absent or empty."""
        value = self._values.get(name) or {}
        if not isinstance(value, dict):
            raise self.error(f"{name} must be an object, not {_show(value)}")
        return ConfigFields(value, f"{self._source}: {name}") if value else None

    def nested_names(self) -> list[str]:
        """The fields that are objects themselves."""
        return [name for name, value in self._values.items() if isinstance(value, dict)]


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _show(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
