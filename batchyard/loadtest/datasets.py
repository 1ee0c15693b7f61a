"""A workload from a file of one's own: JSON lines with prompts or messages.

    {"prompt": "Once upon a time", "max_tokens": 64}
    {"prompt": [17, 4, 2025]}
    {"messages": [{"role": "user", "content": "Hello"}]}
    {"conversations": [{"from": "human", "value": "Hello"}, ...]}      ShareGPT's: up to the last human's turn

`max_tokens` is a row's own, else drawn.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from batchyard.errors import ConfigError
from batchyard.loadtest.lengths import Lengths
from batchyard.loadtest.prompts import Words
from batchyard.loadtest.sessions import Content, Session

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt of the file, and the length of its answer where the file names one."""

    content: Content
    max_tokens: int | None


@dataclass(frozen=True, slots=True)
class Dataset:
    """The rows, in an order that the seed decides; beyond their number they begin again."""

    rows: Sequence[Row]
    output: Lengths
    size: None = None
    timed: bool = False

    def sessions(self, count: int, seed: int) -> Iterator[Session]:
        """`count` of the rows."""
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(self.rows))
        for number, drawn in enumerate(self.output.draw(rng, count)):
            row = self.rows[order[number % len(order)]]
            yield Session(row.content, row.max_tokens or drawn)

    def strangers(self, count: int, seed: int) -> Iterator[Session]:
        """Random words, about as many as a row has."""
        rng = np.random.default_rng([seed, 1])
        words = Words()
        for session in self.sessions(count, seed):
            text = words.content(words.draw(rng, max(1, _characters(session.content) // 5)))
            is_chat = not isinstance(session.content, str) and isinstance(session.content[0], Mapping)
            content = [{"role": "user", "content": text}] if is_chat else text
            yield Session(content, session.max_tokens)


def read_dataset(path: Path, chat: bool | None) -> list[Row]:
    """The rows of a file. With `chat` prompts are asked as chats; with False messages are an error.

    Raises ConfigError, which names the line.
    """
    rows = []
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"{path}: {reason}") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                rows.append(_row(json.loads(line), chat))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise ConfigError(
                    f"{path}, line {number}: should be an object with prompt or messages"
                    + (", and with --endpoint completions with prompt" if chat is False else "")
                ) from error
    if not rows:
        raise ConfigError(f"{path}: there is no row in it")
    return rows


def _row(plain: Mapping[str, Any], chat: bool | None) -> Row:
    tokens = plain.get("max_tokens") or plain.get("output_length")
    content = plain["prompt"] if "prompt" in plain else _messages(plain)
    is_prompt = isinstance(content, str) or isinstance(content[0], int)
    if chat is False and not is_prompt:
        raise ValueError("messages")
    if chat and is_prompt:
        if not isinstance(content, str):
            raise ValueError("token ids in a chat")
        content = [{"role": "user", "content": content}]
    return Row(content, int(tokens) if tokens else None)


def _messages(plain: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if "messages" in plain:
        messages = list(plain["messages"])
    else:
        turns = plain["conversations"]
        messages = [{"role": _ROLES[turn["from"]], "content": turn["value"]} for turn in turns]
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages:
        raise ValueError("nobody asks")
    return messages


def _characters(content: Content) -> int:
    if isinstance(content, str):
        return len(content)
    return sum(len(str(part.get("content", ""))) if isinstance(part, Mapping) else 5 for part in content)
