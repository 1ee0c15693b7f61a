"""The outermost layer of REST: an id, a span, metrics and a log line per request; no error unanswered."""

import asyncio
import re
import uuid
from collections.abc import Mapping
from typing import cast

import structlog
from opentelemetry import trace
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.console.journal import Journal
from gateway.errors import Ending, ErrorReply, reply_to
from gateway.metrics import Metrics
from gateway.observation import CLIENT_GONE, Observation
from gateway.request_trace import Traces

_API = "/v1/"  # what is observed; probes and scrapes are not
_KEY = "batchyard.observation"
_GOOD_ID = re.compile(r"[\w.:\-]{1,128}", re.ASCII)


class ObservingMiddleware:
    """Pure ASGI, so that a request's span ends when the last byte of its answer has been sent."""

    def __init__(self, app: ASGIApp, traces: Traces, metrics: Metrics, journal: Journal) -> None:
        self._app = app
        self._traces = traces
        self._metrics = metrics
        self._journal = journal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        exchange = _Exchange(request_id(headers.get("x-request-id")), send)
        with structlog.contextvars.bound_contextvars(request_id=exchange.request_id):
            if not scope["path"].startswith(_API):
                await exchange.run(self._app, scope, receive)
                return
            observation = Observation(
                exchange.request_id,
                scope["method"],
                headers.get("traceparent", ""),
                self._traces,
                self._metrics,
                self._journal,
            )
            scope[_KEY] = observation
            exchange.headers = observation.answer_headers
            with trace.use_span(observation.span):
                try:
                    await exchange.run(self._app, scope, receive)
                finally:
                    self._end(observation, exchange, scope)

    def _end(self, observation: Observation, exchange: "_Exchange", scope: Scope) -> None:
        # Span names and labels must have few values: the route's template, never the path a client asked for.
        route = getattr(scope.get("route"), "path", None)
        observation.named(scope["method"], route)
        observation.end(route or "unknown", exchange.status)


class _Exchange:
    """One request and its answer, as they pass."""

    def __init__(self, request_id: str, send: Send) -> None:
        self.request_id = request_id
        self.status = CLIENT_GONE  # until an answer begins
        self.headers: Mapping[str, str] = {}  # that the answer gets, whatever it is
        self._send = send
        self._begun = False

    async def run(self, app: ASGIApp, scope: Scope, receive: Receive) -> None:
        try:
            await app(scope, receive, self.send)
        except ClientDisconnect:
            self.status = CLIENT_GONE
            _failed(scope, "client_gone")
        except asyncio.CancelledError:
            # Only the end of the process comes from outside, and nobody there waits for this to be passed on.
            await self._answer(scope, receive, Ending())
        except Exception as error:
            await self._answer(scope, receive, error)

    async def _answer(self, scope: Scope, receive: Receive, error: Exception) -> None:
        response = await answer_error(Request(scope), error)
        if not self._begun:
            await response(scope, receive, self.send)

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._begun = True
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self.request_id
            headers.update(self.headers)
        await self._send(message)


async def answer_error(request: Request, error: Exception) -> Response:
    """What `error` is to the client; it is noted for the log, too."""
    reply = reply_to(error)
    _failed(request.scope, reply.name, our_fault=reply.status >= 500)
    return error_response(reply)


def _failed(scope: Scope, error: str, *, our_fault: bool = False) -> None:
    observation: Observation | None = scope.get(_KEY)
    if observation is not None:
        observation.failed(error, our_fault=our_fault)


def error_response(reply: ErrorReply) -> Response:
    """`reply` over HTTP."""
    return Response(reply.body(), reply.status, dict(reply.headers), "application/json")


def request_id(given: str | None) -> str:
    """The client's own id of its request, where that is a short plain word; else a new one."""
    return given if given and _GOOD_ID.fullmatch(given) else uuid.uuid4().hex


async def observation_of(request: Request) -> Observation:
    """A dependency: what is being learned of this request."""
    return observation_in(request.scope)


def observation_in(scope: Scope) -> Observation:
    """The same, from the ASGI scope."""
    return cast("Observation", scope[_KEY])
