"""`POST /v1/chat/completions`."""

import time
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from gateway.asking import requests_for, terms_of
from gateway.auth import tenant_of
from gateway.body import json_body
from gateway.chat_output import chat_completion, chat_events
from gateway.fan_out import collect, observed
from gateway.keys.records import Tenant
from gateway.limits.door import Door
from gateway.observation import Observation
from gateway.openapi import documented
from gateway.sampling import sampling_params
from gateway.schema.chat import ChatCompletion, ChatCompletionChunk, ChatRequest
from gateway.service import Service
from gateway.sse import EventHead
from gateway.streaming import EventStream, merge, until_disconnect
from gateway.tracing import observation_of

Body = Annotated[ChatRequest, Depends(json_body(ChatRequest))]
Asking = Annotated[Tenant, Depends(tenant_of)]
Observed = Annotated[Observation, Depends(observation_of)]


def chat_router(service: Service, door: Door) -> APIRouter:
    """The route, answered by `service`, for those whom `door` lets in."""
    router = APIRouter(tags=["generation"])

    @router.post("/v1/chat/completions", **documented(ChatCompletion, ChatRequest, chunk=ChatCompletionChunk))
    async def chat_completions(
        request: Request, body: Body, tenant: Asking, observation: Observed
    ) -> Response:
        """Continues a conversation, with `stream` as server-sent events."""
        service.check_model(body.model)
        terms = terms_of(body, tenant, observation, body.cache_salt)
        backend = await service.backend()
        params = sampling_params(
            body,
            limits=backend.limits,
            max_tokens=body.answer_limit,
            logprobs=body.num_logprobs,
        )
        with observation.tokenizing():
            turns = [message.template_turn() for message in body.messages]
            prompt = await service.chat_ids(turns)
        n = body.n or 1
        observation.asked(body.model, "chat", len(prompt), n, params)
        observation.reads(turns)
        requests = requests_for(
            [prompt], n, params, terms, observation, shape=service.shape, limits=backend.limits
        )
        merged = merge([backend.generator.generate(r) for r in requests])
        pieces = observed(door.through(merged, requests, tenant, observation), observation)
        completion_id = f"chatcmpl-{observation.request_id}"
        created = int(time.time())
        if body.stream:
            head = EventHead("chat.completion.chunk", completion_id, created, body.model, body.include_usage)
            events = chat_events(head, pieces, body.include_usage, observation)
            return await EventStream.start(request.receive, events, observation)
        async with until_disconnect(request.receive):
            answers = await collect(pieces, n)
        completion = chat_completion(
            completion_id, created, body.model, answers, bool(body.logprobs), observation.usage
        )
        return Response(completion.model_dump_json(), media_type="application/json")

    return router
