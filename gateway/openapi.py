"""The OpenAPI document: what each route takes, what it gives, and the errors it can answer."""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from gateway.schema.chat import ChatCompletionChunk, ChatRequest
from gateway.schema.common import ErrorBody
from gateway.schema.completion import CompletionChunk, CompletionRequest

_REFERENCE = "#/components/schemas/{model}"
_REQUESTS = (ChatRequest, CompletionRequest)
_CHUNKS = (ChatCompletionChunk, CompletionChunk)
_GENERATION_ERRORS = (400, 404, 413, 415, 429, 503)


def documented(
    answer: type[BaseModel] | None,
    request: type[BaseModel] | None = None,
    *,
    errors: tuple[int, ...] = (),
    secured: bool = True,
    chunk: type[BaseModel] | None = None,
) -> dict[str, Any]:
    """Arguments of a route decorator. An `answer` of None is plain text; a `chunk` is what an event holds."""
    content: dict[str, Any] = {}
    if answer is None:
        content["text/plain"] = {"schema": {"type": "string"}}
    if chunk is not None:
        content["text/event-stream"] = {"schema": _event(chunk)}
    codes = {500, *errors, *((401,) if secured else ()), *(_GENERATION_ERRORS if request else ())}
    responses: dict[int | str, dict[str, Any]] = {200: {"model": answer, "content": content}}
    for code in sorted(codes):
        responses[code] = {"model": ErrorBody, "description": HTTPStatus(code).phrase}
    arguments: dict[str, Any] = {"responses": responses, "response_model": None}
    if request is not None:
        body = {"required": True, "content": {"application/json": {"schema": _reference(request)}}}
        arguments["openapi_extra"] = {"requestBody": body}
    return arguments


def _event(chunk: type[BaseModel]) -> dict[str, Any]:
    """A stream's events: chunks and `[DONE]`, or an error as the last one."""
    json = [
        {"contentMediaType": "application/json", "contentSchema": _reference(model)}
        for model in (chunk, ErrorBody)
    ]
    data = {"type": "string", "anyOf": [*json, {"const": "[DONE]"}]}
    return {"type": "object", "properties": {"data": data}, "required": ["data"]}


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REFERENCE.format(model=model.__name__)}


class DocumentedApp(FastAPI):
    """FastAPI, whose document also has the bodies and events that our routes read and write by themselves."""

    def __init__(self, served_model: str, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._served_model = served_model

    def openapi(self) -> dict[str, Any]:
        """The document; made once."""
        if self.openapi_schema is None:
            document = super().openapi()
            _, definitions = models_json_schema(
                [(model, "validation") for model in (*_REQUESTS, *_CHUNKS)], ref_template=_REFERENCE
            )
            schemas = document["components"]["schemas"]
            schemas.update(definitions["$defs"])
            for request in _REQUESTS:
                schemas[request.__name__]["properties"]["model"]["enum"] = [self._served_model]
            _drop_defaults_of_fastapi(document)
        return super().openapi()


def _drop_defaults_of_fastapi(document: dict[str, Any]) -> None:
    """FastAPI documents its own answer to a bad parameter, 422; ours is 400, and said at each route."""
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
    for unused in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(unused, None)
