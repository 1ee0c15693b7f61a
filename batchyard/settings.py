"""Where settings come from: command line, else environment, else YAML file, else default.

Every source gives text, which is read in one way, so that `8000` means the same in all of them:

    --max-model-len 4096        command line
    BATCHYARD_MAX_MODEL_LEN     environment; a variable that is empty counts as not set
    max-model-len: 4096         YAML file (`--config` or BATCHYARD_CONFIG), with - or _; null is not set
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from batchyard.config import SECRETS, ServeSettings, Settings
from batchyard.errors import ConfigError
from batchyard.flags import FALSE, TRUE, flag_of, hint, kind_of, parse_flags

PREFIX = "BATCHYARD_"
_CONFIG = "config"

# It inherits from the settings of every process: one file or environment serves all commands.
_KNOWN: Mapping[str, FieldInfo] = ServeSettings.model_fields

S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class _Given:
    """A value as it was written, and where."""

    where: str
    text: str


def load(cls: type[S], argv: Sequence[str], env: Mapping[str, str]) -> S:
    """The settings of one process. `argv` is without the command's name; `--help` prints and exits.

    Raises ConfigError, one line that names the setting and its source, for a name that no process knows
    and for a bad value.
    """
    flags = {name: _Given(flag_of(name), text) for name, text in parse_flags(cls, argv).items()}
    given = {**_from_environment(env), **flags}
    file = given.pop(_CONFIG, None)
    if file:
        given = {**_from_file(file), **given}
    return _build(cls, {name: value for name, value in given.items() if name in cls.model_fields})


def to_env(settings: Settings) -> dict[str, str]:
    """The variables from which `load` makes equal settings; those at their default are left out."""
    fields = type(settings).model_fields
    return {
        variable_of(name): _text(value)
        for name, value in settings
        if value != fields[name].default and value is not None
    }


def variable_of(name: str) -> str:
    """`BATCHYARD_MAX_MODEL_LEN` for `max_model_len`."""
    return PREFIX + name.upper()


def _from_environment(env: Mapping[str, str]) -> dict[str, _Given]:
    given = {}
    for variable, text in env.items():
        if not variable.startswith(PREFIX):
            continue
        name = variable.removeprefix(PREFIX).lower()
        if variable != variable_of(name) or (name not in _KNOWN and name != _CONFIG):
            known = [known.upper() for known in (*_KNOWN, _CONFIG)]
            raise ConfigError(f"{variable}: unknown variable{hint(name.upper(), known, PREFIX)}")
        if text:
            given[name] = _Given(f"{variable} in the environment", text)
    return given


def _from_file(file: _Given) -> dict[str, _Given]:
    given: dict[str, _Given] = {}
    for key, value in _read_yaml(file).items():
        name = key.replace("-", "_") if isinstance(key, str) else ""
        where = f"{key} in {file.text}"
        if name not in _KNOWN:
            raise ConfigError(f"{where}: unknown key{hint(name, _KNOWN)}")
        if name in given:
            raise ConfigError(f"{where}: given twice")
        text = _yaml_text(where, _KNOWN[name], value)
        if text not in ("", "~", "null"):
            given[name] = _Given(where, text)
    return given


def _read_yaml(file: _Given) -> dict[Any, Any]:
    try:
        # BaseLoader leaves every scalar as it was written: `api-key: 0123` is not a number here.
        content = yaml.load(Path(file.text).expanduser().read_text("utf-8"), Loader=yaml.BaseLoader)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"{file.where}: cannot read {file.text}: {reason}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{file.where}: {file.text} is not YAML: {_complaint(error)}") from error
    if not content:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{file.where}: {file.text} must hold lines like `port: 8000`")
    return content


def _complaint(error: yaml.YAMLError) -> str:
    """PyYAML's complaint in one line, without the excerpt it adds: that may hold a secret."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return "there are control characters in it"


def _yaml_text(where: str, field: FieldInfo, value: object) -> str:
    if isinstance(value, str):
        return value
    if kind_of(field) is tuple and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ",".join(value)
    raise ConfigError(f"{where}: should be one value")


def _build(cls: type[S], given: Mapping[str, _Given]) -> S:
    try:
        return cls.model_validate({name: _value(cls.model_fields[name], given[name]) for name in given})
    except ValidationError as error:
        first = error.errors()[0]
        problem = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:  # a rule about several settings, which names them
            raise ConfigError(problem) from error
        name = str(first["loc"][0])
        problem = f"{problem[0].lower()}{problem[1:]}"
        shown = "" if name in SECRETS else f", not {given[name].text!r}"
        raise ConfigError(f"{given[name].where}: {problem}{shown}") from error


def _value(field: FieldInfo, given: _Given) -> object:
    """What pydantic is to check: it turns text into numbers and booleans, but not into these two."""
    kind, text = kind_of(field), given.text
    if get_origin(kind) is Literal:
        return {str(choice): choice for choice in get_args(kind)}.get(text, text)
    if kind is not tuple:
        return text
    items = tuple(item.strip() for item in text.split(","))
    if not all(items):
        raise ConfigError(f"{given.where}: an item of the list is empty")
    return items


def _text(value: object) -> str:
    if isinstance(value, bool):
        return TRUE if value else FALSE
    return ",".join(value) if isinstance(value, tuple) else str(value)
