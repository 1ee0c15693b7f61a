"""Answers as the completion API writes them: whole, or as a stream of chunks."""

import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from gateway import sse
from gateway.fan_out import WholeAnswer
from gateway.observation import Observation
from gateway.schema.common import MIN_LOGPROB, Usage
from gateway.schema.completion import Completion, CompletionChoice, CompletionLogprobs
from gateway.streaming import Indexed
from gateway.types import Candidate, Piece, TokenLogprob


def completion(
    completion_id: str,
    created: int,
    model: str,
    answers: Sequence[WholeAnswer],
    with_logprobs: bool,
    usage: Usage,
) -> Completion:
    """The whole continuations, in order."""
    choices = [
        CompletionChoice(
            index=index,
            text=answer.text,
            logprobs=CompletionLogprobs(**_logprobs(answer.logprobs)) if with_logprobs else None,
            finish_reason=answer.finish_reason,
            stop_reason=answer.stop_reason,
        )
        for index, answer in enumerate(answers)
    ]
    return Completion(id=completion_id, created=created, model=model, choices=choices, usage=usage)


async def completion_events(
    head: sse.EventHead, pieces: AsyncGenerator[Indexed], include_usage: bool, observation: Observation
) -> AsyncGenerator[bytes]:
    """A chunk for each piece; usage, if asked for; and the end."""
    async with aclosing(pieces):
        async for index, piece in pieces:
            yield head.event(_choice(index, piece)).encode()
    if include_usage:
        yield head.usage(observation.usage.model_dump())
    yield sse.DONE


def _choice(index: int, piece: Piece) -> str:
    logprobs = sse.value(_logprobs(piece.logprobs)) if piece.logprobs else "null"
    choice = f'{{"index":{index},"text":{sse.text(piece.text)},"logprobs":{logprobs},"finish_reason":'
    if piece.finish_reason is None:
        return choice + "null}"
    reason, stop = sse.value(piece.finish_reason), sse.value(piece.stop_reason)
    return f'{choice}{reason},"stop_reason":{stop}}}'


def _logprobs(entries: Sequence[TokenLogprob]) -> dict[str, Any]:
    return {
        "tokens": [_token(entry.token) for entry in entries],
        "token_logprobs": [_logprob(entry.token) for entry in entries],
        "top_logprobs": [_top(entry) for entry in entries],
        "text_offset": [entry.text_offset for entry in entries],
    }


def _top(entry: TokenLogprob) -> dict[str, float] | None:
    """The likeliest tokens and the one that stands there; None for the first token of a prompt."""
    top = {
        _token(candidate): logprob
        for candidate in (*entry.top, entry.token)
        if (logprob := _logprob(candidate)) is not None
    }
    return top or None


def _token(candidate: Candidate) -> str:
    try:
        return candidate.data.decode()
    except UnicodeDecodeError:
        # OpenAI's way to write a part of a character; U+FFFD would make different tokens look alike.
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in candidate.data)


def _logprob(candidate: Candidate) -> float | None:
    return None if math.isnan(candidate.logprob) else max(candidate.logprob, MIN_LOGPROB)
