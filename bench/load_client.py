"""One process of a load test: requests to OpenAI's streaming completions, and when the answers came.

While answers come in, only the time of each piece is noted; JSON is read when all is over, so that the client
does not slow down what it measures.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

Stamped = tuple[float, bytes]  # when a piece of the answer came, by `time.perf_counter`, and the piece


@dataclass(frozen=True, slots=True)
class Call:
    """A request as it is sent: `at` seconds after the start where arrivals are given, `body` as JSON."""

    at: float
    body: bytes
    prompt_len: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Share:
    """What one process does. `concurrency` calls are in flight at once; 0: each is sent at its time."""

    url: str
    calls: Sequence[Call]
    concurrency: int
    timeout: float  # seconds for one call
    api_key: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call went. Times are those of `time.perf_counter`, which processes of one machine share."""

    prompt_len: int
    asked: int
    start: float
    end: float  # of the last token, or of the call where there was none
    tokens: int = 0
    stamps: list[float] = field(default_factory=list)  # when each event with text came
    error: str | None = None


async def run_share(share: Share) -> list[Outcome]:
    """Makes all calls of `share`, in the order of the calls."""
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=share.timeout)
    headers = {"Content-Type": "application/json"}
    if share.api_key:
        headers["Authorization"] = f"Bearer {share.api_key}"
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, headers=headers, read_bufsize=1 << 20
    ) as session:
        answers = await (_closed(session, share) if share.concurrency else _open(session, share))
    return [read_answer(call, answer) for call, answer in zip(share.calls, answers, strict=True)]


@dataclass(slots=True)
class Answer:
    """What came back, unread."""

    start: float
    end: float = 0.0
    pieces: list[Stamped] = field(default_factory=list)
    error: str | None = None


async def _closed(session: aiohttp.ClientSession, share: Share) -> list[Answer]:
    """As many calls in flight as there may be."""
    answers: dict[int, Answer] = {}
    waiting = iter(enumerate(share.calls))

    async def one_after_another() -> None:
        for number, call in waiting:
            answers[number] = await _ask(session, share.url, call)

    await asyncio.gather(*(one_after_another() for _ in range(share.concurrency)))
    return [answers[number] for number in range(len(share.calls))]


async def _open(session: aiohttp.ClientSession, share: Share) -> list[Answer]:
    """Every call at its time, whatever the answers take."""
    start = time.perf_counter()

    async def in_time(call: Call) -> Answer:
        await asyncio.sleep(max(0.0, start + call.at - time.perf_counter()))
        return await _ask(session, share.url, call)

    return await asyncio.gather(*map(in_time, share.calls))


async def _ask(session: aiohttp.ClientSession, url: str, call: Call) -> Answer:
    answer = Answer(time.perf_counter())
    try:
        async with session.post(url, data=call.body) as response:
            if response.status != 200:
                answer.error = f"{response.status}: {(await response.text())[:200]}"
            else:
                async for piece in response.content.iter_any():
                    answer.pieces.append((time.perf_counter(), piece))
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        answer.error = f"{type(error).__name__}: {error}"
    answer.end = time.perf_counter()
    return answer


def read_answer(call: Call, answer: Answer) -> Outcome:
    """The server-sent events in the pieces. An event has the time of the piece that completed its line."""
    stamps: list[float] = []
    tokens, error = 0, answer.error
    for at, event in _events(answer.pieces):
        if "error" in event:
            error = str(event["error"])[:200]
            break
        if event.get("choices"):
            stamps.append(at)
        if event.get("usage"):
            tokens = event["usage"]["completion_tokens"]
    end = stamps[-1] if stamps else answer.end
    if not stamps and not error:
        error = "no token"
    return Outcome(call.prompt_len, call.max_tokens, answer.start, end, tokens or len(stamps), stamps, error)


def _events(pieces: Sequence[Stamped]) -> list[tuple[float, dict[str, Any]]]:
    events = []
    rest = b""
    for at, piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            data = line.removeprefix(b"data:").strip()
            if line.startswith(b"data:") and data != b"[DONE]":
                events.append((at, json.loads(data)))
    return events
