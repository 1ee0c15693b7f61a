"""Streams of every kind, and what came over each: to be compared with the same ones undisturbed."""

import asyncio
import json
import time
from dataclasses import dataclass, field

import aiohttp
import pytest

PROMPTS = ("import os", "def read_lines(path):", "class Node:\n    def __init__(self", "for key, value in")

BASE = {"model": "demo", "max_tokens": 120, "ignore_eos": True, "temperature": 0, "stream": True}

KINDS = {
    "greedy": {},
    "seeded": {"temperature": 0.9, "top_p": 0.95, "seed": 11},
    "penalties": {"repetition_penalty": 1.2, "presence_penalty": 0.4, "frequency_penalty": 0.3},
    "stop string": {"temperature": 0.8, "seed": 4, "stop": ["\n\n\n", "return self._"], "max_tokens": 160},
    "end of text": {"temperature": 1.0, "seed": 5, "ignore_eos": False, "max_tokens": 160},
    "logprobs": {"temperature": 0.7, "seed": 6, "logprobs": 3},
    "n": {"temperature": 0.9, "seed": 7, "n": 2},
    "echo": {"echo": True, "logprobs": 2},
}


@dataclass
class Stream:
    """All that a client read, by choice, and the longest it waited for something."""

    texts: dict[int, str] = field(default_factory=dict)
    scored: dict[int, list] = field(default_factory=dict)  # tokens and their offsets
    logprobs: dict[int, list] = field(default_factory=dict, compare=False)
    ends: dict[int, tuple] = field(default_factory=dict)
    usage: dict | None = None
    events: int = field(default=0, compare=False)
    silence: float = field(default=0.0, compare=False)
    last: float = field(default=0.0, compare=False)
    over: bool = False

    def read(self, chunk):
        now = time.monotonic()
        if self.last:
            self.silence = max(self.silence, now - self.last)
        self.last = now
        self.events += 1
        if chunk.get("usage"):
            # What is found in a cache depends on who came before.
            self.usage = {k: v for k, v in chunk["usage"].items() if isinstance(v, int)}
        for choice in chunk["choices"]:
            index = choice["index"]
            self.texts[index] = self.texts.get(index, "") + choice["text"]
            if logprobs := choice["logprobs"]:
                told = zip(logprobs["tokens"], logprobs["text_offset"], strict=True)
                self.scored.setdefault(index, []).extend(told)
                self.logprobs.setdefault(index, []).extend(logprobs["token_logprobs"])
            if choice["finish_reason"]:
                self.ends[index] = choice["finish_reason"], choice.get("stop_reason")


def bodies(count):
    """So many requests, of all kinds in turn."""
    kinds = list(KINDS.values())
    return [
        BASE
        | {"prompt": PROMPTS[n % len(PROMPTS)], "stream_options": {"include_usage": True}}
        | kinds[n % len(kinds)]
        for n in range(count)
    ]


async def play(session, url, body, stream):
    """Reads one stream to its end. Raises AssertionError where it breaks off, or is refused."""
    async with session.post(f"{url}/v1/completions", json=body) as reply:
        assert reply.status == 200, await reply.text()
        async for line in reply.content:
            if line.startswith(b"data: {"):
                chunk = json.loads(line.removeprefix(b"data: "))
                assert "error" not in chunk, chunk
                stream.read(chunk)
            elif line.startswith(b"data: [DONE]"):
                stream.over = True
                return
    raise AssertionError("the stream broke off")


async def play_all(url, count, disturb=None):
    """The streams of `bodies(count)`, all at once. `disturb(streams)` runs beside them."""
    streams = [Stream() for _ in range(count)]
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as group:
        for body, stream in zip(bodies(count), streams, strict=True):
            group.create_task(play(session, url, body, stream))
        if disturb:
            group.create_task(disturb(streams))
    return streams


async def under_way(streams, events):
    """Until each stream that is not over has had so many events more."""
    goals = [stream.events + events for stream in streams]
    async with asyncio.timeout(60):
        while any(s.events < goal and not s.over for s, goal in zip(streams, goals, strict=True)):
            await asyncio.sleep(0.01)


def difference(streams, calm):
    """What differs, in words; empty where nothing does."""
    words = []
    for n, (one, other) in enumerate(zip(streams, calm, strict=True)):
        words += [
            f"stream {n}: {what} {mine!r:.800} instead of {yours!r:.800}"
            for what in ("texts", "scored", "ends", "usage", "over")
            if (mine := getattr(one, what)) != (yours := getattr(other, what))
        ]
        # Who else is in a step decides the last bits of a sum.
        for mine, yours in zip(one.logprobs.values(), other.logprobs.values(), strict=True):
            assert [m or 0.0 for m in mine] == pytest.approx([y or 0.0 for y in yours], abs=1e-3)
    return words
