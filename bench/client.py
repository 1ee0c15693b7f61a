"""A small client of the completion API over HTTP/1.1 and server-sent events.

It does next to nothing while answers come in (it notes when each event came; JSON is read afterwards), since$
a small machine the client shares its cores with the service.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Answer:
    """One streamed completion."""

    text: str
    num_tokens: int
    ttft: float  # seconds to the first event
    seconds: float  # to the last event that has text

    @property
    def tpot(self) -> float:
        """Seconds per output token after the first."""
        return (self.seconds - self.ttft) / max(1, self.num_tokens - 1)


@dataclass(frozen=True, slots=True)
class Load:
    """What one run asks for. `salt` keeps its prompts apart from those of other runs in the prefix cache."""

    model: str
    prompts: Sequence[Sequence[int]]
    output_tokens: int
    in_flight: int
    salt: str


def generate(port: int, load: Load) -> tuple[list[Answer], float]:
    """The answers in the order of the prompts, and the seconds from the first request to the last answer."""
    return asyncio.run(_generate(port, load))


async def _generate(port: int, load: Load) -> tuple[list[Answer], float]:
    answers: dict[int, Answer] = {}
    waiting = iter(enumerate([_body(load, prompt) for prompt in load.prompts]))

    async def one_after_another() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            for number, body in waiting:
                answers[number] = await _ask(reader, writer, body)
        finally:
            writer.close()

    started = time.perf_counter()
    async with asyncio.TaskGroup() as clients:
        for _ in range(load.in_flight):
            clients.create_task(one_after_another())
    seconds = time.perf_counter() - started
    return [answers[number] for number in range(len(load.prompts))], seconds


def _body(load: Load, prompt: Sequence[int]) -> bytes:
    request = {
        "model": load.model,
        "prompt": prompt,
        "max_tokens": load.output_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "skip_special_tokens": False,
        "cache_salt": load.salt,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return json.dumps(request).encode()


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> Answer:
    head = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    started = time.perf_counter()
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    response = await reader.readuntil(b"\r\n\r\n")
    if response.split(maxsplit=2)[1] != b"200":
        raise ConnectionError(
            f"the service answered {response.decode()} {(await reader.read(4096)).decode()}"
        )
    chunks = [(time.perf_counter() - started, chunk) async for chunk in _chunks(reader)]
    return _answer(chunks)


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The parts of a body in chunked transfer coding (RFC 9112, section 7.1)."""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        yield await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readexactly(2)


def _answer(chunks: list[tuple[float, bytes]]) -> Answer:
    events: list[tuple[float, dict[str, Any]]] = []
    rest = b""
    for at, chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n\n")
        events += [
            (at, json.loads(data)) for event in whole if (data := event.removeprefix(b"data: ")) != b"[DONE]"
        ]
    pieces = [(at, event["choices"][0]["text"]) for at, event in events if event["choices"]]
    return Answer(
        text="".join(text for _, text in pieces),
        num_tokens=events[-1][1]["usage"]["completion_tokens"],
        ttft=pieces[0][0],
        seconds=pieces[-1][0],
    )
