"""The REST API: FastAPI, put together from its parts."""

from importlib.metadata import version

from fastapi import Depends, FastAPI
from starlette.exceptions import HTTPException

from batchyard.errors import BatchyardError
from gateway.auth import BearerKey
from gateway.console.state import Console
from gateway.keys.ring import KeyRing
from gateway.limits.door import Door
from gateway.metrics import Metrics
from gateway.openapi import DocumentedApp
from gateway.request_trace import Traces
from gateway.routes_chat import chat_router
from gateway.routes_completions import completions_router
from gateway.routes_console import console_router
from gateway.routes_service import models_router, probes_router
from gateway.service import Service
from gateway.tracing import ObservingMiddleware, answer_error


def create_app(
    service: Service, *, keys: KeyRing, door: Door, traces: Traces, metrics: Metrics, console: Console
) -> FastAPI:
    """The ASGI application. Where there are keys, everything below /v1 needs one."""
    app = DocumentedApp(
        service.model,
        title="Batchyard",
        version=version("batchyard"),
        description="LLM serving with one scheduler for all GPUs, behind OpenAI's API.",
        redoc_url=None,
        redirect_slashes=False,  # a redirected POST would lose its body
    )
    secured = [Depends(BearerKey(keys))] if keys.required else []
    app.include_router(chat_router(service, door), dependencies=secured)
    app.include_router(completions_router(service, door), dependencies=secured)
    app.include_router(models_router(service), dependencies=secured)
    app.include_router(probes_router(service, metrics))
    app.include_router(console_router(console, keys))
    for error in (BatchyardError, HTTPException):
        app.add_exception_handler(error, answer_error)
    app.add_middleware(ObservingMiddleware, traces=traces, metrics=metrics, journal=console.journal)
    return app
