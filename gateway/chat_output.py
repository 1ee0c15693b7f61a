"""Answers as the chat API writes them: whole, or as a stream of chunks."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from gateway import sse
from gateway.fan_out import WholeAnswer
from gateway.observation import Observation
from gateway.schema.chat import (
    AnswerMessage,
    ChatChoice,
    ChatCompletion,
    ChatLogprobs,
)
from gateway.schema.common import MIN_LOGPROB, Usage
from gateway.streaming import Indexed
from gateway.types import Candidate, Piece, TokenLogprob


def chat_completion(
    completion_id: str,
    created: int,
    model: str,
    answers: Sequence[WholeAnswer],
    with_logprobs: bool,
    usage: Usage,
) -> ChatCompletion:
    """The whole answers, in order."""
    choices = [
        ChatChoice(
            index=index,
            message=AnswerMessage(content=answer.text),
            logprobs=ChatLogprobs(**_logprobs(answer.logprobs)) if with_logprobs else None,
            finish_reason=answer.finish_reason,
            stop_reason=answer.stop_reason,
        )
        for index, answer in enumerate(answers)
    ]
    return ChatCompletion(id=completion_id, created=created, model=model, choices=choices, usage=usage)


async def chat_events(
    head: sse.EventHead, pieces: AsyncGenerator[Indexed], include_usage: bool, observation: Observation
) -> AsyncGenerator[bytes]:
    """Each answer's role, then its text, then its finish reason; usage, if asked for; and the end."""
    begun: set[int] = set()
    async with aclosing(pieces):
        async for index, piece in pieces:
            event = ""
            if index not in begun:
                begun.add(index)
                delta = '{"role":"assistant","content":"","refusal":null}'
                event = head.event(_choice(index, delta))
            if piece.text or piece.logprobs:
                event += head.event(_choice(index, f'{{"content":{sse.text(piece.text)}}}', piece))
            if piece.finish_reason:
                event += head.event(_last_choice(index, piece))
            if event:
                yield event.encode()
    if include_usage:
        yield head.usage(observation.usage.model_dump())
    yield sse.DONE


def _choice(index: int, delta: str, piece: Piece | None = None) -> str:
    logprobs = sse.value(_logprobs(piece.logprobs)) if piece and piece.logprobs else "null"
    return f'{{"index":{index},"delta":{delta},"logprobs":{logprobs},"finish_reason":null}}'


def _last_choice(index: int, piece: Piece) -> str:
    reason, stop = sse.value(piece.finish_reason), sse.value(piece.stop_reason)
    return f'{{"index":{index},"delta":{{}},"logprobs":null,"finish_reason":{reason},"stop_reason":{stop}}}'


def _logprobs(entries: Sequence[TokenLogprob]) -> dict[str, Any]:
    content = [
        {**_candidate(entry.token), "top_logprobs": [_candidate(top) for top in entry.top]}
        for entry in entries
    ]
    return {"content": content, "refusal": None}


def _candidate(candidate: Candidate) -> dict[str, Any]:
    logprob = max(candidate.logprob, MIN_LOGPROB)
    return {"token": candidate.text, "logprob": logprob, "bytes": list(candidate.data)}
