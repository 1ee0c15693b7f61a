"""What a client is told when something goes wrong: OpenAI's JSON shape and status codes.

What both API surfaces raise beyond `batchyard.errors`:

    InvalidRequest
    ├── BadParameter        one parameter is unknown, unsupported or out of range; `code` says which
    └── ModelNotFound       the request names a model that is not served (HTTP 404)
    UserError
    ├── Unauthenticated     the API key is missing or wrong (HTTP 401)
    └── SlowClient          the client does not read its answer (HTTP 408)
    Overloaded
    └── RateLimited         the key has used up what it was promised, for now (HTTP 429)
    BatchyardError
    ├── KeysUnread          the API keys have not been read yet (HTTP 503)
    └── Ending              this process ends before the answer does (HTTP 503)
"""

import json
import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

import structlog
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException

from batchyard.errors import (
    BatchyardError,
    InvalidRequest,
    Overloaded,
    RequestFailed,
    SchedulerLost,
    ServerFull,
    UserError,
)

log = structlog.get_logger()

# A scheduler that died is started again and ready in about two seconds; a worker takes as long as its model.
_BACK_IN_S = 3
_SHOWN = 100  # characters of a client's own words that an error repeats
_PATH = 256  # characters of the path to a parameter, which may be a client's own words too


class BadParameter(InvalidRequest):
    """One parameter of a request cannot be honoured. `code` is a machine's name for why."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message, param)
        self.code = code


class ModelNotFound(InvalidRequest):
    """The request names a model that is not served here."""

    def __init__(self, model: str, served: str) -> None:
        super().__init__(f"The model {shown(model)} does not exist; this service serves {served!r}.", "model")


class Unauthenticated(UserError):
    """The API key is missing or wrong."""


class SlowClient(UserError):
    """The client does not read its answer."""

    def __init__(self) -> None:
        super().__init__("The answer was not read in time.")


class RateLimited(Overloaded):
    """A limit of the key is reached. `kind` is what is counted, in OpenAI's words: tokens or requests."""

    def __init__(self, message: str, retry_after_s: float, kind: str) -> None:
        super().__init__(message, retry_after_s)
        self.kind = kind


class KeysUnread(BatchyardError):
    """Whom a key belongs to is not known yet."""

    def __init__(self) -> None:
        super().__init__("This server cannot read its API keys yet; try again.")


class Ending(BatchyardError):
    """This process ends before the answer does."""

    def __init__(self) -> None:
        super().__init__("This server is shutting down; try again.")


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """One error as a client sees it, whatever the surface."""

    status: int  # HTTP
    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For logs and traces: the code, or the type where there is none."""
        return self.code or self.type

    def body(self) -> bytes:
        """OpenAI's error object, as JSON."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return json.dumps({"error": error}).encode()


def reply_to(error: Exception) -> ErrorReply:
    """What to answer when `error` ended a request. What is our own fault is logged, under the id answered."""
    match error:
        case Unauthenticated():
            headers = {"WWW-Authenticate": "Bearer"}
            return ErrorReply(401, str(error), code="invalid_api_key", headers=headers)
        case SlowClient():
            return ErrorReply(408, str(error), code="slow_client")
        case ModelNotFound():
            return ErrorReply(404, str(error), param=error.param, code="model_not_found")
        case BadParameter():
            return ErrorReply(400, str(error), param=error.param, code=error.code)
        case InvalidRequest():
            return ErrorReply(400, str(error), param=error.param)
        case RateLimited():
            wait = math.ceil(error.retry_after_s or 1)
            headers = {"Retry-After": str(max(1, wait))}
            return ErrorReply(429, str(error), error.kind, code="rate_limit_exceeded", headers=headers)
        case Overloaded():
            wait = max(1, math.ceil(error.retry_after_s or 1))
            headers = {"Retry-After": str(wait)}
            status, kind = 429, "rate_limit_error"
            if isinstance(error, ServerFull):
                status, kind = 503, "service_unavailable_error"
            return ErrorReply(status, str(error), kind, code="overloaded", headers=headers)
        case SchedulerLost() | KeysUnread() | Ending():
            headers = {"Retry-After": str(_BACK_IN_S)}
            return ErrorReply(
                503, str(error), "service_unavailable_error", code="service_unavailable", headers=headers
            )
        case RequestFailed():
            return ErrorReply(500, str(error), "server_error", code="request_failed")
        case HTTPException():
            return _http_reply(error)
    error_id = uuid.uuid4().hex
    log.error("request failed", error_id=error_id, exc_info=error)
    return ErrorReply(
        500, f"The service failed; its log says why under the id {error_id}.", "server_error", code="internal"
    )


def _http_reply(error: HTTPException) -> ErrorReply:
    phrase = HTTPStatus(error.status_code).phrase
    code = phrase.lower().replace(" ", "_")
    message = str(error.detail) if error.detail != phrase else f"{phrase}."
    return ErrorReply(error.status_code, message, code=code, headers=error.headers or {})


def bad_parameter(error: ValidationError) -> BadParameter:
    """The first fault that the schema found, named by its path as in `messages[0].content`."""
    first = error.errors(include_url=False)[0]
    param = _path(first["loc"])
    match first["type"]:
        case "extra_forbidden":
            return BadParameter(f"Unknown parameter: {shown(param)}.", param, "unknown_parameter")
        case "unsupported_parameter":
            return BadParameter(
                f"Unsupported parameter: {shown(param)} {first['msg']}.", param, "unsupported_parameter"
            )
        case "missing":
            return BadParameter(
                f"Missing required parameter: {shown(param)}.", param, "missing_required_parameter"
            )
        case "inconsistent":
            param = str(first["ctx"]["param"])
            return BadParameter(f"Invalid value for {shown(param)}: {first['msg']}.", param, "invalid_value")
        case "json_invalid":
            reason = first["msg"].removeprefix("Invalid JSON: ")
            return BadParameter(f"The body is not valid JSON: {reason}.", code="invalid_json")
    if not param:
        return BadParameter(f"The request is invalid: {_reason(first)}.", code="invalid_value")
    return BadParameter(f"Invalid value for {shown(param)}: {_reason(first)}.", param, "invalid_value")


def shown(words: str) -> str:
    """A client's own words, quoted and cut to a length that suits an error."""
    return repr(words if len(words) <= _SHOWN else words[:_SHOWN] + "…")


def _path(loc: tuple[int | str, ...]) -> str:
    """`messages[0].content`; what stands in angle brackets names a branch of a union, not a field."""
    path = ""
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not part.startswith("<") and part != "[key]":
            path += f".{part}" if path else part
    return path if len(path) <= _PATH else path[:_PATH] + "…"


def _reason(details: ErrorDetails) -> str:
    message = details["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    value = details["input"]
    if isinstance(value, str):
        return f"{message}, got {shown(value)}"
    if isinstance(value, int | float):
        return f"{message}, got {str(value)[:_SHOWN]}"
    return message
