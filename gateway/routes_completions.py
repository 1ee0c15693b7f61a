"""`POST /v1/completions`."""

import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from gateway.asking import requests_for, terms_of
from gateway.auth import tenant_of
from gateway.body import json_body
from gateway.completion_output import completion, completion_events
from gateway.echo import EchoedPrompt, echo, echo_only
from gateway.fan_out import collect, observed
from gateway.keys.records import Tenant
from gateway.limits.door import Door
from gateway.observation import Observation
from gateway.openapi import documented
from gateway.sampling import sampling_params
from gateway.schema.completion import Completion, CompletionChunk, CompletionRequest
from gateway.service import Generates, Service, Tokenizes
from gateway.sse import EventHead
from gateway.streaming import EventStream, merge, until_disconnect
from gateway.submission import Limits
from gateway.tracing import observation_of
from gateway.types import GenerationRequest, Piece, SamplingParams

Body = Annotated[CompletionRequest, Depends(json_body(CompletionRequest))]
Asking = Annotated[Tenant, Depends(tenant_of)]
Observed = Annotated[Observation, Depends(observation_of)]


def completions_router(service: Service, door: Door) -> APIRouter:
    """The route, answered by `service`, for those whom `door` lets in."""
    router = APIRouter(tags=["generation"])

    @router.post("/v1/completions", **documented(Completion, CompletionRequest, chunk=CompletionChunk))
    async def completions(request: Request, body: Body, tenant: Asking, observation: Observed) -> Response:
        """Continues each prompt, with `stream` as server-sent events."""
        service.check_model(body.model)
        terms = terms_of(body, tenant, observation, body.cache_salt)
        backend = await service.backend()
        params = _params(body, backend.limits)
        with observation.tokenizing():
            prompts = [await service.prompt_ids(prompt) for prompt in body.prompts]
        n = body.n or 1
        observation.asked(body.model, "text_completion", sum(map(len, prompts)), n, params)
        observation.reads([{"role": "user", "content": p} for p in body.prompts if isinstance(p, str)])
        requests = requests_for(
            prompts, n, params, terms, observation, shape=service.shape, limits=backend.limits
        )
        merged = merge(_answers(body, requests, backend.generator, service.tokenizer))
        pieces = observed(door.through(merged, requests, tenant, observation), observation)
        completion_id = f"cmpl-{observation.request_id}"
        created = int(time.time())
        if body.stream:
            head = EventHead("text_completion", completion_id, created, body.model, body.include_usage)
            events = completion_events(head, pieces, body.include_usage, observation)
            return await EventStream.start(request.receive, events, observation)
        async with until_disconnect(request.receive):
            answers = await collect(pieces, len(requests))
        whole = completion(
            completion_id, created, body.model, answers, body.logprobs is not None, observation.usage
        )
        return Response(whole.model_dump_json(), media_type="application/json")

    return router


def _params(body: CompletionRequest, limits: Limits) -> SamplingParams:
    params = sampling_params(
        body,
        limits=limits,
        max_tokens=body.max_tokens,
        logprobs=body.logprobs,
        prompt_logprobs=body.logprobs if body.echo else None,
    )
    # The generator always answers; to a prompt alone, with a token that `echo_only` drops.
    return replace(params, max_tokens=1, logprobs=None) if body.max_tokens == 0 else params


def _answers(
    body: CompletionRequest, requests: list[GenerationRequest], generator: Generates, tokenizer: Tokenizes
) -> list[AsyncIterator[Piece]]:
    answers = [generator.generate(request) for request in requests]
    if not body.echo:
        return answers
    repeat = echo if body.max_tokens != 0 else echo_only
    n = body.n or 1
    prompts = [
        EchoedPrompt(_text(body, body.prompts[index // n], tokenizer), request.prompt_ids, tokenizer)
        for index, request in enumerate(requests)
    ]
    return [repeat(answer, prompt) for answer, prompt in zip(answers, prompts, strict=True)]


def _text(body: CompletionRequest, prompt: str | list[int], tokenizer: Tokenizes) -> str:
    """A text prompt to the letter; token ids as they read."""
    if isinstance(prompt, str):
        return prompt
    return tokenizer.decode(prompt, body.skip_special_tokens is not False)
