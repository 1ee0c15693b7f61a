"""What the pieces of an answer say: server-sent events as OpenAI writes them.

https://platform.openai.com/docs/api-reference/chat-streaming,
https://html.spec.whatwg.org/#server-sent-events
"""

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from batchyard.loadtest.client import Exchange

_SLICE = 64  # events read at a time: about 0.2 ms in which no stream is listened to
_SHOWN = 200  # characters of a server's words


@dataclass(slots=True)
class Answer:
    """A stream that has been read. Stamps are times of `time.perf_counter`."""

    stamps: list[float] = field(default_factory=list)
    input_tokens: int | None = None
    output_tokens: int | None = None
    text: list[str] = field(default_factory=list)
    error: str | None = None
    done: bool = False  # it said [DONE] or why it finished


async def read_stream(exchange: Exchange) -> Answer:
    """Reads an answer in slices, between which other streams are listened to."""
    answer = Answer()
    for number, (at, data) in enumerate(_events(exchange.pieces)):
        if number % _SLICE == _SLICE - 1:
            await asyncio.sleep(0)
        if data == b"[DONE]":
            answer.done = True
            break
        try:
            _take(answer, at, json.loads(data))
        except (ValueError, TypeError, KeyError, AttributeError):
            answer.error = f"an event that is not OpenAI's: {data[:_SHOWN].decode(errors='replace')}"
        if answer.error:
            break
    return answer


def _take(answer: Answer, at: float, event: dict[str, Any]) -> None:
    if problem := event.get("error"):
        answer.error = message_of(problem)
        return
    if choices := event.get("choices"):
        choice = choices[0]
        answer.done = answer.done or choice.get("finish_reason") is not None
        if _says_something(choice):
            answer.stamps.append(at)
        answer.text.append(choice.get("text") or (choice.get("delta") or {}).get("content") or "")
    if usage := event.get("usage"):
        answer.input_tokens = usage["prompt_tokens"]
        answer.output_tokens = usage["completion_tokens"]


def _says_something(choice: dict[str, Any]) -> bool:
    """Whether a reader of the stream would count it as output.

    A completion's events are tokens, with or without text to show for it. A chat begins with a role and may
    end with an empty delta, neither of which is a token.
    """
    if "delta" not in choice:
        return True
    return any(value for name, value in (choice["delta"] or {}).items() if name != "role")


def message_of(problem: object) -> str:
    """A server's error, whether OpenAI's object or something else, in one short line."""
    text = problem.get("message") if isinstance(problem, dict) else problem
    return " ".join(str(text or problem).split())[:_SHOWN]


def refusal_of(exchange: Exchange) -> str:
    """Why an exchange has no stream: its status and the server's words."""
    try:
        plain = json.loads(exchange.body)
        problem = plain.get("error", plain) if isinstance(plain, dict) else plain
    except ValueError:
        problem = exchange.body.decode(errors="replace")
    return f"{exchange.status}: {message_of(problem)}"


def _events(pieces: Sequence[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
    """The data of each event, with the time of the piece that completed its line."""
    rest = b""
    for at, piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield at, line[5:].strip()
