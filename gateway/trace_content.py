"""What was said, as spans tell it where that is switched on: JSON of the GenAI conventions, of bounded size.

https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/#capturing-instructions-inputs-and-outputs
"""

import json
from collections.abc import Mapping, Sequence

MOST_CHARACTERS = 8192  # of all messages in one attribute: the last ones, for they are new
_CUT = "…"


def input_messages(turns: Sequence[Mapping[str, str]]) -> str:
    """`gen_ai.input.messages` of roles and contents."""
    messages: list[dict[str, object]] = []
    left = MOST_CHARACTERS
    for turn in reversed(turns):
        if left <= 0:
            break
        content = turn.get("content") or ""
        messages.append(_message(turn["role"], _last(content, left)))
        left -= len(content)
    return json.dumps(messages[::-1], ensure_ascii=False)


def output_messages(answers: Sequence[tuple[str, str]]) -> str:
    """`gen_ai.output.messages` of texts, each with its finish reason."""
    each = MOST_CHARACTERS // max(1, len(answers))
    messages = [
        _message("assistant", text if len(text) <= each else text[:each] + _CUT) | {"finish_reason": reason}
        for text, reason in answers
    ]
    return json.dumps(messages, ensure_ascii=False)


def _message(role: str, text: str) -> dict[str, object]:
    return {"role": role, "parts": [{"type": "text", "content": text}]}


def _last(text: str, most: int) -> str:
    return text if len(text) <= most else _CUT + text[-most:]
