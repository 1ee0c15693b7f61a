"""Which models there are, and how the service is: for clients, probes and Prometheus."""

import asyncio

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from gateway.errors import ErrorReply
from gateway.metrics import CONTENT_TYPE, Metrics
from gateway.openapi import documented
from gateway.schema.models import ModelCard, ModelList, State
from gateway.service import Service
from gateway.tracing import error_response


def models_router(service: Service) -> APIRouter:
    """The models served."""
    router = APIRouter(tags=["models"])

    @router.get("/v1/models", **documented(ModelList, errors=(503,)))
    async def list_models() -> Response:
        """All models: there is one."""
        return JSONResponse(ModelList(data=[await _card(service)]).model_dump())

    @router.get("/v1/models/{model:path}", **documented(ModelCard, errors=(404, 503)))
    async def retrieve_model(model: str) -> Response:
        """One model."""
        service.check_model(model)
        return JSONResponse((await _card(service)).model_dump())

    return router


def probes_router(service: Service, metrics: Metrics) -> APIRouter:
    """Whether the process lives, whether it can answer, and what it has counted. No API key needed."""
    router = APIRouter(tags=["service"])

    @router.get("/health", **documented(State, secured=False))
    async def health() -> Response:
        """200 while this process lives."""
        return JSONResponse({"status": "ok"})

    @router.get("/ready", **documented(State, errors=(503,), secured=False))
    async def ready() -> Response:
        """200 when tokens can flow now: a worker takes requests and answers its steps; else 503 with why."""
        reason = await service.why_not_ready()
        if reason is None:
            return JSONResponse({"status": "ready"})
        return error_response(ErrorReply(503, reason, "service_unavailable_error", code="not_ready"))

    @router.get("/metrics", **documented(None, secured=False))
    async def scrape(request: Request) -> Response:
        """Counts in Prometheus's text format. `name[]=` asks for one metric, and may be repeated."""
        # On a thread: it takes milliseconds, in which answers are not to stand still.
        text = await asyncio.to_thread(metrics.exposition, request.query_params.getlist("name[]"))
        return Response(text, headers={"Content-Type": CONTENT_TYPE})

    return router


async def _card(service: Service) -> ModelCard:
    limits = (await service.backend()).limits
    return ModelCard(id=service.model, created=service.created, max_model_len=limits.max_model_len)
