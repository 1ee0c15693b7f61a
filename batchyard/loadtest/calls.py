"""Sessions as bytes: encoded before the test begins, so that nothing is computed meanwhile."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from batchyard.loadtest.sessions import Content, Message, Session, Turn


@dataclass(frozen=True, slots=True)
class Call:
    """One request, ready to be sent."""

    path: str
    body: bytes
    max_tokens: int
    input_tokens: int = 0  # 0: only the server knows


@dataclass(frozen=True, slots=True)
class Job:
    """A session, ready to be played: `due` seconds after the start; None: when there is room."""

    number: int
    call: Call
    due: float | None = None
    messages: tuple[Message, ...] = ()  # of a conversation, up to the first answer
    turns: tuple[Turn, ...] = ()


@dataclass(frozen=True, slots=True)
class Encoder:
    """How requests are written.

    `body` is what all of them have: sampling, and whatever else the user adds.
    """

    model: str
    pinned: bool  # ignore_eos
    body: Mapping[str, Any] = field(default_factory=dict)

    def job(self, number: int, session: Session, due: float | None) -> Job:
        """A session's first request, and what follows."""
        call = self.call(session.content, session.max_tokens, session.input_tokens)
        if not session.turns:
            return Job(number, call, due)
        messages = tuple(part for part in session.content if isinstance(part, Mapping))
        return Job(number, call, due, messages, session.turns)

    def call(self, content: Content, max_tokens: int, input_tokens: int = 0) -> Call:
        """Messages are a chat, everything else is a completion."""
        is_chat = not isinstance(content, str) and len(content) > 0 and isinstance(content[0], Mapping)
        path, name = ("/v1/chat/completions", "messages") if is_chat else ("/v1/completions", "prompt")
        body = {
            "model": self.model,
            name: content,
            "max_tokens": max_tokens,
            **({"ignore_eos": True} if self.pinned else {}),
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.body,
        }
        return Call(path, json.dumps(body, ensure_ascii=False).encode(), max_tokens, input_tokens)


def follow_up(messages: Sequence[Message], answer: str, turn: Turn) -> tuple[Message, ...]:
    """The conversation with an answer and what the user says to it."""
    return (*messages, {"role": "assistant", "content": answer}, {"role": "user", "content": turn.text})
