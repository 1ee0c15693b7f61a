"""How a stream's events are written. Built from strings, not from models: this runs for every token."""

import json
from json.encoder import encode_basestring
from typing import Any

DONE = b"data: [DONE]\n\n"


def text(value: str) -> str:
    """`value` as a JSON string, its quotes included."""
    return encode_basestring(value)


def value(plain: Any) -> str:
    """Plain data as compact JSON."""
    return json.dumps(plain, separators=(",", ":"), ensure_ascii=False)


class EventHead:
    """What all events of one stream begin and end with."""

    def __init__(self, kind: str, stream_id: str, created: int, model: str, include_usage: bool) -> None:
        """`kind` is the `object` of each chunk; with `include_usage` those before the last say it is null."""
        self._head = (
            f'data: {{"id":{text(stream_id)},"object":{text(kind)},"created":{created},'
            f'"model":{text(model)},"choices":['
        )
        self._tail = '],"usage":null}\n\n' if include_usage else "]}\n\n"

    def event(self, choice: str) -> str:
        """One chunk with one choice, itself JSON."""
        return self._head + choice + self._tail

    def usage(self, usage: dict[str, Any]) -> bytes:
        """The last chunk: usage, and no choices."""
        return f'{self._head}],"usage":{value(usage)}}}\n\n'.encode()
