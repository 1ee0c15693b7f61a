"""Which workload the flags ask for."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from batchyard.errors import ConfigError
from batchyard.loadtest.datasets import Dataset, read_dataset
from batchyard.loadtest.lengths import parse_lengths
from batchyard.loadtest.prompts import DEFAULT_IDS, Alphabet, TokenIds, Words, parse_ids
from batchyard.loadtest.sessions import Workload
from batchyard.loadtest.synthetic import Conversations, SharedPrefix, Synthetic
from batchyard.loadtest.traces import Replay, is_trace, read_trace

_INPUT, _OUTPUT = "512", "128"

# To offer a flag where it does nothing would be to ignore it.
_ONLY: Mapping[str, tuple[str, ...]] = {
    "synthetic prompts": ("prefix", "prefixes", "prefix_share"),
    "conversations": ("think", "system"),
    "traces": ("speed", "scale_tokens", "max_input", "max_output"),
}
_ALSO = {"input": ("traces", "datasets"), "output": ("traces",), "prompts": ("conversations", "datasets")}


def add_workload_flags(parser: argparse.ArgumentParser) -> None:
    """What is asked."""
    group = parser.add_argument_group(
        "workload",
        "Lengths in tokens: 512, 100-1024 (uniform), normal:512:100, lognormal:220:1.0[:LOW:HIGH].",
    )
    group.add_argument("--input", metavar="LEN", help=f"length of prompts; default: {_INPUT}")
    group.add_argument("--output", metavar="LEN", help=f"length of answers; default: {_OUTPUT}")
    group.add_argument(
        "--prefix", type=int, metavar="N", help="tokens that prompts begin with in common, on top"
    )
    group.add_argument("--prefixes", type=int, metavar="N", help="different ones of these; default: 1")
    group.add_argument("--prefix-share", type=float, metavar="X", help="of prompts that have one; default: 1")
    group.add_argument("--turns", metavar="LEN", help="conversations of so many requests, as chats")
    group.add_argument(
        "--think", type=float, metavar="S", help="seconds between turns, on average; default: 0"
    )
    group.add_argument(
        "--system", type=int, metavar="N", help="words of a system prompt all conversations share"
    )
    group.add_argument("--dataset", type=Path, metavar="FILE", help="JSON lines with prompt or messages")
    group.add_argument("--trace", type=Path, metavar="FILE", help="Mooncake's JSON lines or Azure's CSV")
    group.add_argument("--speed", type=float, metavar="X", help="times the trace's pace; default: 1")
    group.add_argument("--scale-tokens", type=float, metavar="X", help="times a trace's lengths")
    group.add_argument("--max-input", type=int, metavar="N", help="cuts a trace's longer prompts")
    group.add_argument("--max-output", type=int, metavar="N", help="cuts a trace's longer answers")
    group.add_argument("--endpoint", choices=["completions", "chat"], help="default: what the workload is")
    group.add_argument(
        "--prompts", choices=["ids", "text"], help="token ids (default), or words; chats are words"
    )
    group.add_argument("--token-ids", metavar="LOW:END", help=f"default: {DEFAULT_IDS[0]}:{DEFAULT_IDS[1]}")
    group.add_argument("--temperature", type=float, default=0.0, metavar="X", help="default: 0")
    group.add_argument("--body", metavar="JSON", help="added to requests: '{\"top_p\": 0.9}'")
    group.add_argument(
        "--no-ignore-eos", dest="ignore_eos", action="store_false", help="answers may end early"
    )


def workload_of(given: argparse.Namespace) -> Workload:
    """What the flags ask for. Raises ConfigError, also for flags that another workload has."""
    sources = [name for name in ("turns", "dataset", "trace") if getattr(given, name)]
    if len(sources) > 1:
        raise ConfigError(f"--{sources[0]} and --{sources[1]} exclude each other")
    kinds = {"turns": "conversations", "dataset": "datasets", "trace": "traces"}
    kind = kinds[sources[0]] if sources else "synthetic prompts"
    _check_flags(given, kind)
    if kind == "conversations":
        return _conversations(given)
    if kind == "datasets":
        return _dataset(given)
    if kind == "traces":
        return _trace(given)
    return _synthetic(given)


def _check_flags(given: argparse.Namespace, kind: str) -> None:
    for owner, names in _ONLY.items():
        if kind != owner and (name := next((n for n in names if getattr(given, n) is not None), None)):
            raise ConfigError(f"--{name.replace('_', '-')} is for {owner} only, not for {kind}")
    for name, without in _ALSO.items():
        if getattr(given, name) is not None and kind in without:
            raise ConfigError(f"--{name} is not for {kind}")
    for name in ("prefix", "prefixes", "system", "speed", "scale_tokens", "max_input", "max_output"):
        if (value := getattr(given, name)) is not None and value <= 0:
            raise ConfigError(f"--{name.replace('_', '-')} {value:g}: must be above 0")
    if kind == "conversations" and given.endpoint == "completions":
        raise ConfigError("--endpoint completions: conversations are chats")


def _alphabet(given: argparse.Namespace) -> Alphabet:
    words = given.prompts == "text" or given.endpoint == "chat"
    if given.endpoint == "chat" and given.prompts == "ids":
        raise ConfigError("--prompts ids: a chat is text")
    if words and given.token_ids:
        raise ConfigError("--token-ids: prompts are text here")
    if words:
        return Words()
    return parse_ids(given.token_ids) if given.token_ids else TokenIds(*DEFAULT_IDS)


def _synthetic(given: argparse.Namespace) -> Synthetic:
    prefix = None
    if given.prefix:
        share = 1.0 if given.prefix_share is None else given.prefix_share
        if not 0 <= share <= 1:
            raise ConfigError(f"--prefix-share {share:g}: must be between 0 and 1")
        prefix = SharedPrefix(given.prefix, given.prefixes or 1, share)
    elif given.prefixes is not None or given.prefix_share is not None:
        raise ConfigError("--prefixes and --prefix-share need --prefix, the length of what is shared")
    return Synthetic(
        _alphabet(given),
        parse_lengths(given.input or _INPUT, "--input"),
        parse_lengths(given.output or _OUTPUT, "--output"),
        prefix,
        given.endpoint == "chat",
    )


def _conversations(given: argparse.Namespace) -> Conversations:
    return Conversations(
        parse_lengths(given.turns, "--turns"),
        parse_lengths(given.input or _INPUT, "--input"),
        parse_lengths(given.output or _OUTPUT, "--output"),
        given.system or 0,
        given.think or 0.0,
    )


def _dataset(given: argparse.Namespace) -> Dataset:
    if given.dataset.is_file() and is_trace(given.dataset, _first_line(given.dataset)):
        raise ConfigError(f"--dataset {given.dataset}: this is a trace; give it as --trace")
    chat = None if given.endpoint is None else given.endpoint == "chat"
    return Dataset(read_dataset(given.dataset, chat), parse_lengths(given.output or _OUTPUT, "--output"))


def _trace(given: argparse.Namespace) -> Replay:
    return Replay(
        read_trace(given.trace),
        _alphabet(given),
        given.speed or 1.0,
        given.scale_tokens or 1.0,
        given.max_input,
        given.max_output,
        given.endpoint == "chat",
    )


def _first_line(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.readline(10_000)
