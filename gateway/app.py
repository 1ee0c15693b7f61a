"""The REST API: FastAPI, put together from its parts."""

from importlib.metadata import version

from fastapi import Depends, FastAPI
from opentelemetry.trace import Tracer
from starlette.exceptions import HTTPException

from batchyard.errors import BatchyardError
from gateway.auth import ApiKey, BearerKey
from gateway.metrics import Metrics
from gateway.openapi import DocumentedApp
from gateway.routes_chat import chat_router
from gateway.routes_completions import completions_router
from gateway.routes_service import models_router, probes_router
from gateway.service import Service
from gateway.tracing import ObservingMiddleware, answer_error


def create_app(service: Service, *, api_key: str | None, tracer: Tracer, metrics: Metrics) -> FastAPI:
    """The ASGI application. Where there is an `api_key`, everything below /v1 needs it."""
    app = DocumentedApp(
        service.model,
        title="Batchyard",
        version=version("batchyard"),
        description="LLM serving with one scheduler for all GPUs, behind OpenAI's API.",
        redoc_url=None,
        redirect_slashes=False,  # a redirected POST would lose its body
    )
    secured = [Depends(BearerKey(ApiKey(api_key)))] if api_key is not None else []
    app.include_router(chat_router(service), dependencies=secured)
    app.include_router(completions_router(service), dependencies=secured)
    app.include_router(models_router(service), dependencies=secured)
    app.include_router(probes_router(service, metrics))
    for error in (BatchyardError, HTTPException):
        app.add_exception_handler(error, answer_error)
    app.add_middleware(ObservingMiddleware, tracer=tracer, metrics=metrics)
    return app
