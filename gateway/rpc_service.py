"""The public gRPC API, `batchyard.v1.Inference`: the same checks and the same generator as REST."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio
import structlog
from opentelemetry import trace

from gateway.asking import requests_for, terms_of
from gateway.console.journal import Journal
from gateway.errors import BadParameter, ErrorReply, SlowClient, reply_to
from gateway.fan_out import observed
from gateway.keys.records import Tenant
from gateway.keys.ring import KeyRing
from gateway.limits.door import Door
from gateway.metrics import Metrics
from gateway.observation import Observation
from gateway.request_trace import Traces
from gateway.rpc_messages import rpc_fields, rpc_response, rpc_turns, rpc_usage
from gateway.sampling import sampling_params
from gateway.server import CLIENT_TIMEOUT_S
from gateway.service import Service
from gateway.streaming import merge
from gateway.tracing import request_id
from protos.inference_pb2 import GenerateRequest, GenerateResponse, Model, ModelsRequest, ModelsResponse
from protos.inference_pb2_grpc import InferenceServicer

SERVICE = "batchyard.v1.Inference"
_GENERATE = f"{SERVICE}/Generate"

_STATUSES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
}

Context = grpc.aio.ServicerContext[Any, Any]


class RpcInference(InferenceServicer):
    """Answers the calls of one gateway process."""

    def __init__(
        self,
        service: Service,
        keys: KeyRing,
        door: Door,
        traces: Traces,
        metrics: Metrics,
        journal: Journal,
        client_timeout_s: float = CLIENT_TIMEOUT_S,
    ) -> None:
        """A client that reads nothing for `client_timeout_s` loses its request."""
        self._service = service
        self._keys = keys
        self._door = door
        self._traces = traces
        self._metrics = metrics
        self._journal = journal
        self._client_timeout_s = client_timeout_s

    async def Generate(self, request: GenerateRequest, context: Context) -> None:  # type: ignore[override]  # noqa: N802
        """Writes the pieces of all choices as they come. A client that goes away cancels this coroutine."""
        metadata = _metadata(context)
        name = request_id(metadata.get("x-request-id"))
        traceparent = metadata.get("traceparent", "")
        observation = Observation(name, _GENERATE, traceparent, self._traces, self._metrics, self._journal)
        status = grpc.StatusCode.CANCELLED
        with structlog.contextvars.bound_contextvars(request_id=name), trace.use_span(observation.span):
            try:
                tenant = self._keys.tenant(_authorization(metadata))
                observation.of_tenant(tenant.name)
                await self._answer(request, context, tenant, observation)
                status = grpc.StatusCode.OK
            except Exception as error:
                reply = reply_to(error)
                observation.failed(reply.name, our_fault=reply.status >= 500)
                status = _status(reply)
                await context.abort(status, reply.message, _trailing(reply, observation))
            finally:
                observation.end(_GENERATE, status.name)

    async def Models(self, request: ModelsRequest, context: Context) -> ModelsResponse:  # noqa: N802
        """The models served: there is one."""
        try:
            self._keys.tenant(_authorization(_metadata(context)))
            limits = (await self._service.backend()).limits
        except Exception as error:
            reply = reply_to(error)
            await context.abort(_status(reply), reply.message)
        return ModelsResponse(models=[Model(id=self._service.model, max_model_len=limits.max_model_len)])

    async def _answer(
        self, request: GenerateRequest, context: Context, tenant: Tenant, observation: Observation
    ) -> None:
        service = self._service
        service.check_model(request.model)
        fields = rpc_fields(request)
        terms = terms_of(fields, tenant, observation)
        backend = await service.backend()
        params = sampling_params(
            fields,
            limits=backend.limits,
            max_tokens=fields.max_tokens,
            logprobs=fields.logprobs,
        )
        with observation.tokenizing():
            operation, prompt = await self._prompt(request, observation)
        n = left = fields.n or 1
        observation.asked(request.model, operation, len(prompt), n, params)
        requests = requests_for(
            [prompt], n, params, terms, observation, shape=service.shape, limits=backend.limits
        )
        answers = merge([backend.generator.generate(r) for r in requests])
        pieces = observed(self._door.through(answers, requests, tenant, observation), observation)
        begun = False
        async with aclosing(pieces):
            async for index, piece in pieces:
                if not begun:
                    begun = True
                    await context.send_initial_metadata(_initial(observation))
                response = rpc_response(observation.request_id, index, piece)
                left -= piece.finish_reason is not None
                if not left:
                    response.usage.CopyFrom(rpc_usage(observation.usage))
                await self._write(context, response)

    async def _write(self, context: Context, response: GenerateResponse) -> None:
        """Raises SlowClient where the client does not read on, and CancelledError where it has gone.

        What it does not read waits here and in gRPC's window of flow control, then as tokens of its request.
        """
        try:
            async with asyncio.timeout(self._client_timeout_s):
                await context.write(response)
        except TimeoutError:
            raise SlowClient from None
        except grpc.aio.InternalError:
            # What gRPC says of a write that was waiting for room when the call ended.
            raise asyncio.CancelledError from None

    async def _prompt(
        self, request: GenerateRequest, observation: Observation
    ) -> tuple[str, tuple[int, ...]]:
        match request.WhichOneof("prompt"):
            case "text":
                observation.reads([{"role": "user", "content": request.text}])
                return "text_completion", await self._service.prompt_ids(request.text)
            case "token_ids":
                return "text_completion", tuple(request.token_ids.ids)
            case "chat":
                turns = rpc_turns(request.chat)
                observation.reads(turns)
                return "chat", await self._service.chat_ids(turns)
        raise BadParameter("Missing required parameter: 'prompt'.", "prompt", "missing_required_parameter")


def _status(reply: ErrorReply) -> grpc.StatusCode:
    return _STATUSES.get(reply.status, grpc.StatusCode.INTERNAL)


def _initial(observation: Observation) -> Sequence[tuple[str, str]]:
    return (("x-request-id", observation.request_id), *observation.answer_headers.items())


def _metadata(context: Context) -> dict[str, str]:
    metadata = context.invocation_metadata() or ()
    return {key: value for key, value in metadata if isinstance(value, str)}


def _authorization(metadata: dict[str, str]) -> bytes | None:
    value = metadata.get("authorization")
    return None if value is None else value.encode()


def _trailing(reply: ErrorReply, observation: Observation) -> Sequence[tuple[str, str]]:
    """What an answer has at its begin, an error has at its end."""
    retry_after = reply.headers.get("Retry-After")
    return (*_initial(observation), *((("retry-after", retry_after),) if retry_after else ()))
