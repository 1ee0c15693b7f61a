"""The file of `--warm-prompts`: prompts that many requests will begin with.

A prompt a line, in UTF-8; empty lines do not count:

    You answer questions about our garden tools.                      text: the system prompt of chats
    {"messages": [{"role": "system", "content": "You are\\u2026"}]}       the beginning of a chat
    {"prompt": "Translate into French:", "cache_salt": "tenant-7"}    the beginning of a completion

A chat is prefilled as far as all chats that begin with these messages have the same tokens.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError, model_validator

from batchyard.errors import ConfigError, InvalidRequest
from gateway.schema.chat import Message, Messages
from gateway.schema.common import Strict
from gateway.tokenizing import Tokenizer
from protos.packing import pack_i32
from protos.scheduling_pb2 import WarmPrompt

# What users say first; where tokens begin to differ between them, the common beginning is over.
_ANY_QUESTIONS = ("a", "1")


class _Line(Strict):
    messages: Messages | None = None
    prompt: str | None = None
    cache_salt: str = ""

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.messages is None) == (self.prompt is None):
            raise ValueError("give either `messages` or `prompt`")
        return self


def load_warm_prompts(path: Path, tokenizer: Tokenizer) -> list[WarmPrompt]:
    """Reads and tokenizes the file. Raises ConfigError: one line that names the line at fault."""
    try:
        lines = path.expanduser().read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"warm_prompts: cannot read {path}: {reason}") from error
    prompts = []
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            line = _parse(text.strip())
            tokens = _tokens(line, tokenizer)
        except (ValueError, InvalidRequest) as error:
            raise ConfigError(f"warm_prompts: line {number} of {path}: {_complaint(error)}") from error
        prompts.append(WarmPrompt(tokens=pack_i32(tokens), cache_salt=line.cache_salt))
    if not prompts:
        raise ConfigError(f"warm_prompts: there is no prompt in {path}")
    return prompts


def _parse(text: str) -> _Line:
    if not text.startswith("{"):
        return _Line(messages=[Message(role="system", content=text)])
    return _Line.model_validate(json.loads(text))


def _tokens(line: _Line, tokenizer: Tokenizer) -> list[int]:
    if line.prompt is not None:
        tokens = tokenizer.encode(line.prompt)
    else:
        tokens = _opening([message.template_turn() for message in line.messages or []], tokenizer)
    if not tokens:
        raise ValueError("the prompt is empty")
    return tokens


def _opening(turns: Sequence[Mapping[str, Any]], tokenizer: Tokenizer) -> list[int]:
    """The tokens that all chats have which begin with `turns`."""
    if turns[-1]["role"] == "user":
        return tokenizer.render_chat(turns)
    one, other = (
        tokenizer.render_chat([*turns, {"role": "user", "content": text}]) for text in _ANY_QUESTIONS
    )
    return [token for token, _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))]


def _complaint(error: ValueError | InvalidRequest) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON ({error.msg})"
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if not str(part).startswith("<"))
        problem = first["msg"].removeprefix("Value error, ")
        return f"{where}: {problem}" if where else problem
    return str(error)
