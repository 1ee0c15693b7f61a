"""A tokenizer of one token per byte, and a generator that says what it is told to, for tests of the API."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from fastapi import FastAPI

from batchyard.tls import TlsFiles
from gateway.app import create_app
from gateway.console.journal import Journal
from gateway.console.peers import Peers
from gateway.console.state import Console
from gateway.keys.ring import KeyRing
from gateway.limits.door import Door
from gateway.limits.limiter import Limiter, LocalLimiter
from gateway.metrics import Metrics
from gateway.readiness import Watch
from gateway.request_trace import Traces
from gateway.server import HttpServer, bind
from gateway.service import Backend, Service
from gateway.submission import Limits
from gateway.types import Candidate, GenerationRequest, Piece, TokenLogprob
from protos.scheduling_pb2 import Description, WorkerState

MODEL = "demo"
VOCAB_SIZE = 256
MAX_MODEL_LEN = 4096
WORDS = ("Hel", "lo", " wörld", "!")


class FakeTokenizer:
    """A token is a byte."""

    def least_tokens(self, characters: int) -> int:
        return characters // 4

    async def encode_async(self, text: str) -> list[int]:
        return list(text.encode())

    async def render_chat_async(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        lines = "".join(f"{message['role']}: {message['content']}\n" for message in messages)
        return list(lines.encode())

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return bytes(token_ids).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id])


def candidate(text: str, token_id: int = 1, logprob: float = -0.5) -> Candidate:
    return Candidate(token_id, text, text.encode(), logprob)


@dataclass
class FakeGenerator:
    """Answers every request with `words`, a token each, up to max_tokens; keeps what it was asked."""

    words: Sequence[str] = WORDS
    fails_with: Exception | None = None
    fails_after: int = 0  # pieces
    hangs_after: int | None = None  # pieces
    requests: list[GenerationRequest] = field(default_factory=list)
    running: int = 0
    hanging: asyncio.Event = field(default_factory=asyncio.Event)
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Piece]:
        self.requests.append(request)
        self.running += 1
        try:
            async for piece in self._pieces(request):
                yield piece
        finally:
            self.running -= 1
            if not self.running:
                self.closed.set()

    async def _pieces(self, request: GenerationRequest) -> AsyncIterator[Piece]:
        limit = request.params.max_tokens
        words = self.words[:limit]
        offset = 0
        for index, word in enumerate(words):
            if self.fails_with and index == self.fails_after:
                raise self.fails_with
            if index == self.hangs_after:
                self.hanging.set()
                await asyncio.Event().wait()
            last = index == len(words) - 1
            yield Piece(
                text=word,
                token_ids=(index,),
                logprobs=self._logprobs(request, word, offset),
                prompt_logprobs=_prompt_logprobs(request) if index == 0 else (),
                finish_reason=None if not last else "length" if len(words) == limit else "stop",
                cached_tokens=min(16, len(request.prompt_ids)) if index == 0 else 0,
            )
            offset += len(word)
            await asyncio.sleep(0)

    def _logprobs(self, request: GenerationRequest, word: str, offset: int) -> tuple[TokenLogprob, ...]:
        if request.params.logprobs is None:
            return ()
        top = tuple(candidate(f"alt{i}", i, -1.0 - i) for i in range(request.params.logprobs))
        return (TokenLogprob(candidate(word), top, offset),)


def _prompt_logprobs(request: GenerationRequest) -> tuple[TokenLogprob | None, ...]:
    if request.params.prompt_logprobs is None:
        return ()
    rest = [
        TokenLogprob(Candidate(token, chr(token), bytes([token]), -2.0), (), at)
        for at, token in enumerate(request.prompt_ids[1:], start=1)
    ]
    return (None, *rest)


def description(ready: bool = True) -> Description:
    worker = WorkerState(worker_id="worker-0", connected=True, seconds_since_step=0.0 if ready else 60.0)
    return Description(ready=ready, max_model_len=MAX_MODEL_LEN, vocab_size=VOCAB_SIZE, workers=[worker])


async def ready() -> Description:
    return description()


def make_service(generator: FakeGenerator | None = None, **changes: Any) -> Service:
    limits = Limits(MAX_MODEL_LEN, VOCAB_SIZE)
    the_backend = Backend(generator or FakeGenerator(), limits)

    async def backend() -> Backend:
        return the_backend

    fields: dict[str, Any] = {
        "model": MODEL,
        "tokenizer": FakeTokenizer(),
        "backend": backend,
        "describe": ready,
    }
    return Service(**(fields | changes))


def make_app(
    generator: FakeGenerator | None = None,
    *,
    api_key: str | None = None,
    keys: KeyRing | None = None,
    limiter: Limiter | None = None,
    traces: Traces | None = None,
    metrics: Metrics | None = None,
    watch: Watch | None = None,
    trace_url: str | None = None,
    **changes: Any,
) -> FastAPI:
    metrics = metrics or Metrics()
    service = make_service(generator, **changes)
    return create_app(
        service,
        keys=KeyRing(fixed=api_key) if keys is None else keys,
        door=Door(limiter or LocalLimiter(), metrics),
        traces=traces or Traces(),
        metrics=metrics,
        console=Console(
            service.model, watch or Watch(service.describe), Peers(Journal()), trace_url=trace_url
        ),
    )


@asynccontextmanager
async def in_process(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of `app` without a network."""
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client


@asynccontextmanager
async def on_a_port(
    app: FastAPI, grace_s: float = 5.0, timeout_s: float = 60.0, tls: TlsFiles | None = None
) -> AsyncIterator[str]:
    """The URL of `app`, served by a real uvicorn."""
    server = HttpServer(app, bind("127.0.0.1", 0, share_port=False), grace_s, timeout_s, tls)
    server.start()
    try:
        yield server.url
    finally:
        await server.stop()
