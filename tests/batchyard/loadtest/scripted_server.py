"""A small real server with OpenAI's streaming API, whose delays and faults are scripted."""

import asyncio
import json
import threading
import time
from dataclasses import dataclass, field, replace

from aiohttp import web


@dataclass(frozen=True)
class Script:
    """What the server does. Seconds."""

    first_s: float = 0.0
    gap_s: float = 0.0
    tokens: int | None = None  # None: as many as are asked for
    usage: bool = True
    refusals: int = 0  # this many requests get 429 first
    retry_after: str | None = "1"
    status: int = 200
    break_after: int | None = None  # events, after which the connection is cut
    error_after: int | None = None  # events, after which an error is sent
    headers: dict[str, str] = field(default_factory=dict)
    models: tuple[str, ...] = ("scripted",)
    key: str | None = None


class ScriptedServer:
    """In a thread of its own, as a server is a process of its own."""

    def __init__(self) -> None:
        self.script = Script()
        self.bodies: list[dict] = []
        self.arrivals: list[float] = []  # by time.perf_counter
        self.writes: list[list[float]] = []  # when tokens were written, by answer
        self.running = self.most_running = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def set(self, **changes: object) -> None:
        self.script = replace(self.script, **changes)

    def start(self) -> None:
        self._thread.start()
        self.url = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _start(self) -> str:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/completions", self._answer)
        app.router.add_post("/v1/chat/completions", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"

    async def _models(self, request: web.Request) -> web.Response:
        if self.script.key and request.headers.get("Authorization") != f"Bearer {self.script.key}":
            return web.json_response({"error": {"message": "no such key"}}, status=401)
        return web.json_response({"data": [{"id": name} for name in self.script.models]})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.arrivals.append(time.perf_counter())
        body = await request.json()
        self.bodies.append(body)
        if self.script.refusals > 0:
            self.set(refusals=self.script.refusals - 1)
            headers = {"Retry-After": self.script.retry_after} if self.script.retry_after else {}
            return web.json_response({"error": {"message": "too many"}}, status=429, headers=headers)
        if self.script.status != 200:
            return web.json_response({"error": {"message": "scripted"}}, status=self.script.status)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            return await self._stream(request, body)
        finally:
            self.running -= 1

    async def _stream(self, request: web.Request, body: dict) -> web.StreamResponse:
        script, is_chat = self.script, "messages" in body
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", **script.headers})
        await response.prepare(request)
        count = script.tokens or body["max_tokens"]
        times: list[float] = []
        self.writes.append(times)
        if is_chat:
            await self._send(response, {"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        for number in range(count):
            await asyncio.sleep(script.gap_s if number else script.first_s)
            if number == script.break_after:
                request.transport.abort()
                return response
            if number == script.error_after:
                await self._send(response, {"error": {"message": "out of luck"}})
                return response
            times.append(time.perf_counter())
            await self._send(response, {"choices": [_choice(is_chat, number, number == count - 1)]})
        if is_chat:
            await self._send(response, {"choices": [{"delta": {}, "finish_reason": "length"}]})
        if script.usage:
            prompt = body.get("prompt", "")
            usage = {"prompt_tokens": len(prompt) if isinstance(prompt, list) else 7}
            await self._send(response, {"choices": [], "usage": usage | {"completion_tokens": count}})
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _send(self, response: web.StreamResponse, event: dict) -> None:
        await response.write(f"data: {json.dumps(event)}\n\n".encode())


def _choice(is_chat: bool, number: int, last: bool) -> dict:
    if is_chat:
        return {"delta": {"content": f"w{number} "}, "finish_reason": None}
    return {"text": f"w{number} ", "finish_reason": "length" if last else None}
