"""Request bodies: read, bounded and checked; straight from JSON, which is strict about Unicode too."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from fastapi import HTTPException, Request
from pydantic import ValidationError

from gateway.errors import bad_parameter
from gateway.schema.common import Strict

# Bytes; a prompt of a million token ids fits. All other requests wait while JSON is parsed: for the worst of
# it (millions of short lists or unknown keys) a third of a second a megabyte, in a hundred times the memory.
MAX_BODY = 8 * 2**20

Model = TypeVar("Model", bound=Strict)


def json_body(model: type[Model]) -> Callable[[Request], Awaitable[Model]]:
    """A dependency that gives the request's body as a `model`. It raises BadParameter and HTTPException."""

    async def read(request: Request) -> Model:
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type != "application/json":
            raise HTTPException(
                415, "The body must be JSON, with the header `Content-Type: application/json`."
            )
        body = await _read(request)
        try:
            return model.model_validate_json(body)
        except ValidationError as error:
            raise bad_parameter(error) from None

    return read


async def _read(request: Request) -> bytearray:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise HTTPException(413, f"The body is larger than {MAX_BODY} bytes.")
    return body
