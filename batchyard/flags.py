"""The command line of a command, derived from its settings class: flags, help and hints."""

import argparse
import difflib
from collections.abc import Iterable, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from batchyard.config import ServeSettings, Settings
from batchyard.errors import ConfigError

TRUE, FALSE = "true", "false"

# `batchyard serve` wires its processes itself: to offer these flags there would be to ignore them.
_WIRED_BY_SERVE = frozenset(
    {
        "listen",
        "worker_id",
        "advertise_address",
        "weight",
        "worker_addresses",
        "scheduler_listen",
        "scheduler_address",
        "share_port",
        "gateway_count",
        "gateway_folder",
        # Unix sockets in a folder of its own, which nobody else may enter, need no certificates.
        "internal_ssl_certfile",
        "internal_ssl_keyfile",
        "internal_ssl_ca_certs",
        "internal_ssl_name",
    }
)


def command_of(cls: type[Settings]) -> str:
    """The sub-command that `cls` is the settings of: `worker` for WorkerSettings."""
    return cls.__name__.removesuffix("Settings").lower()


def flag_of(name: str) -> str:
    """`--max-model-len` for `max_model_len`."""
    return "--" + name.replace("_", "-")


def kind_of(field: FieldInfo) -> Any:
    """The type of a field's value: int, float, bool, str, a Literal or a tuple; without None and limits."""
    plain = _plain(field.annotation)
    return tuple if get_origin(plain) is tuple else plain


def parse_flags(cls: type[Settings], argv: Sequence[str]) -> dict[str, str]:
    """Field name (or `config`) to text, for every flag in `argv`. `--help` prints and ends the process.

    Raises ConfigError for anything that is not a flag of this command, or has no value.
    """
    known, unknown = _parser(cls).parse_known_args(list(argv))
    if unknown:
        raise ConfigError(_what_is(unknown[0], cls))
    given: dict[str, str] = {name: text for name, text in vars(known).items() if text is not None}
    if empty := next((name for name, text in given.items() if not text), None):
        raise ConfigError(f"{flag_of(empty)}: the value is empty")
    return given


def hint(name: str, names: Iterable[str], prefix: str = "") -> str:
    """`; did you mean PREFIX…?` with the nearest of `names`, or nothing where none is near."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong as one ConfigError, where argparse would print its usage and end the process."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message.removeprefix("argument "))


def _parser(cls: type[Settings]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=f"batchyard {command_of(cls)}",
        usage="%(prog)s [--setting value ...]",
        description=cls.__doc__,
        epilog="Each may come from the environment (--max-model-len is BATCHYARD_MAX_MODEL_LEN) or a file.",
        # Wide, so that each setting is one line: a narrow terminal folds it, we do not.
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=44, width=180),
        allow_abbrev=False,
        add_help=False,
    )
    for title, names in _sections(cls):
        group = parser.add_argument_group(title)
        for name in names:
            _add_flag(group, name, cls.model_fields[name])
    group = parser.add_argument_group("other")
    group.add_argument("--config", metavar="FILE", help="YAML file of settings, by the names above")
    group.add_argument("--help", "-h", action="help", help="print this and exit")
    return parser


def _sections(cls: type[Settings]) -> list[tuple[str, list[str]]]:
    """Title and flag names for each class that adds fields to `cls`, the most particular class first."""
    sections: list[tuple[str, list[str]]] = []
    seen = set(_WIRED_BY_SERVE) if issubclass(cls, ServeSettings) else set()
    for base in reversed(cls.__mro__):
        if issubclass(base, Settings):
            names = [name for name in base.model_fields if name not in seen]
            seen.update(names)
            sections.append((command_of(base) or "every process", names))
    return [section for section in reversed(sections) if section[1]]


def _add_flag(group: argparse._ArgumentGroup, name: str, field: FieldInfo) -> None:
    kind, flag, text = kind_of(field), flag_of(name), _help(name, field)
    if kind is bool:
        group.add_argument(flag, dest=name, action="store_const", const=TRUE, help=text)
        negation = "--no-" + flag.removeprefix("--")
        group.add_argument(negation, dest=name, action="store_const", const=FALSE, help=argparse.SUPPRESS)
    else:
        group.add_argument(flag, dest=name, metavar=_metavar(name, kind), help=text)


def _help(name: str, field: FieldInfo) -> str:
    text = field.description or ""
    if kind_of(field) is bool:
        text += f" (default: {'yes' if field.default else 'no'}; or --no-{name.replace('_', '-')})"
    elif field.default not in (None, ()):
        default = ",".join(field.default) if isinstance(field.default, tuple) else field.default
        text += f" (default: {default})"
    return text.replace("%", "%%")


def _metavar(name: str, kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, get_args(kind))) + "}"
    return {int: "N", float: "X"}.get(kind) or name.rsplit("_", 1)[-1].upper()


def _what_is(argument: str, cls: type[Settings]) -> str:
    """One line about an argument this command does not know. Its value is left out: it may be a secret."""
    if not argument.startswith("-"):
        return f"unexpected argument {argument!r}: settings are given as --name value"
    flag = argument.split("=", 1)[0]
    names = [name for _, names in _sections(cls) for name in names]
    near = hint(flag.strip("-"), [flag_of(name)[2:] for name in names], "--")
    return f"{flag}: not a setting of `batchyard {command_of(cls)}`{near}"


def _plain(annotation: Any) -> Any:
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        (inner,) = [part for part in get_args(annotation) if part is not NoneType]
        return _plain(inner)
    return annotation
