"""Between the messages of the public gRPC API and what the gateway works with."""

from typing import Annotated, Any

from google.protobuf.unknown_fields import UnknownFieldSet
from pydantic import Field, TypeAdapter, ValidationError

from gateway.errors import BadParameter, bad_parameter
from gateway.schema.chat import Messages
from gateway.schema.common import INT32, MAX_TOP_LOGPROBS, AnyRequestFields, Strict, Usage
from gateway.types import Candidate, Piece
from gateway.types import TokenLogprob as ScoredToken
from protos import inference_pb2 as pb

_NOT_SAMPLING = {"model", "text", "token_ids", "chat"}


class RpcFields(AnyRequestFields):
    """All parameters of a GenerateRequest but its model and its prompt."""

    max_tokens: Annotated[int, Field(ge=1, le=INT32)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None


class _Conversation(Strict):
    messages: Messages


_CONVERSATION = TypeAdapter(_Conversation)


def rpc_fields(request: pb.GenerateRequest) -> RpcFields:
    """The parameters that are set, under the same checks as in REST. Raises BadParameter."""
    unknown = UnknownFieldSet(request)
    if len(unknown):
        number = unknown[0].field_number
        raise BadParameter(f"Unknown field number {number} in GenerateRequest.", code="unknown_parameter")
    given: dict[str, Any] = {}
    for field, value in request.ListFields():
        if field.name == "logit_bias":
            given[field.name] = {str(token_id): bias for token_id, bias in value.items()}
        elif field.name not in _NOT_SAMPLING:
            given[field.name] = value if isinstance(value, int | float) else list(value)
    try:
        return RpcFields.model_validate(given)
    except ValidationError as error:
        raise bad_parameter(error) from None


def rpc_turns(chat: pb.Chat) -> list[dict[str, str]]:
    """Roles and contents for the chat template, under the same checks as in REST. Raises BadParameter."""
    messages = [{"role": message.role, "content": message.content} for message in chat.messages]
    try:
        conversation = _CONVERSATION.validate_python({"messages": messages})
    except ValidationError as error:
        raise bad_parameter(error) from None
    return [message.template_turn() for message in conversation.messages]


def rpc_response(answer_id: str, index: int, piece: Piece) -> pb.GenerateResponse:
    """`piece` of the choice with this index."""
    return pb.GenerateResponse(
        id=answer_id,
        index=index,
        text=piece.text,
        token_ids=piece.token_ids,
        logprobs=[_logprob(entry) for entry in piece.logprobs],
        finish_reason=piece.finish_reason or "",
    )


def rpc_usage(usage: Usage) -> pb.Usage:
    """The same numbers."""
    return pb.Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.prompt_tokens_details.cached_tokens,
    )


def _logprob(entry: ScoredToken) -> pb.TokenLogprob:
    top = [_alternative(candidate) for candidate in entry.top]
    return pb.TokenLogprob(token_id=entry.token.token_id, logprob=entry.token.logprob, top=top)


def _alternative(candidate: Candidate) -> pb.Alternative:
    return pb.Alternative(token_id=candidate.token_id, logprob=candidate.logprob)
