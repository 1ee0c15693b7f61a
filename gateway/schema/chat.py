"""`POST /v1/chat/completions`: https://platform.openai.com/docs/api-reference/chat"""

from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from gateway.schema.common import (
    INT32,
    MAX_TOP_LOGPROBS,
    Only,
    RequestFields,
    Strict,
    Usage,
    at,
)


class TextPart(Strict):
    """One part of a message; text is the only kind there is."""

    type: Literal["text"]
    text: str


def _content_kind(value: object) -> str | None:
    return "<text>" if isinstance(value, str) else "<parts>" if isinstance(value, list) else None


Content = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[list[TextPart], Field(min_length=1, fail_fast=True), Tag("<parts>")],
    Discriminator(
        _content_kind,
        custom_error_type="content_type",
        custom_error_message="should be a text or a list of parts of type `text`",
    ),
]


class Message(Strict):
    """One turn of the conversation. An answer of ours can be sent back as it came."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: Annotated[None, Only()] = None
    refusal: Annotated[None, Only()] = None
    annotations: Annotated[None, Only(([],))] = None
    audio: Annotated[None, Only()] = None
    function_call: Annotated[None, Only()] = None
    tool_calls: Annotated[None, Only(([],))] = None
    tool_call_id: Annotated[None, Only()] = None

    def template_turn(self) -> dict[str, str]:
        """Role and content as chat templates expect them: `developer` is the newer name of `system`."""
        role = "system" if self.role == "developer" else self.role
        parts = self.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return {"role": role, "content": text}


Messages = Annotated[list[Message], Field(min_length=1, fail_fast=True)]


class ChatRequest(RequestFields):
    """A chat to be continued by the assistant."""

    messages: Messages
    max_completion_tokens: Annotated[int, Field(ge=1, le=INT32)] | None = Field(
        None, description="of the answer; default: what the context has left"
    )
    max_tokens: Annotated[int, Field(ge=1, le=INT32)] | None = Field(
        None, description="the older name of max_completion_tokens"
    )
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    audio: Annotated[None, Only()] = None
    function_call: Annotated[None, Only(("none",))] = None
    functions: Annotated[None, Only(([],))] = None
    metadata: Annotated[None, Only(({},))] = None
    modalities: Annotated[None, Only((["text"],))] = None
    parallel_tool_calls: Annotated[None, Only((True,))] = None
    prediction: Annotated[None, Only()] = None
    prompt_cache_key: Annotated[None, Only()] = None
    reasoning_effort: Annotated[None, Only()] = None
    response_format: Annotated[None, Only(({"type": "text"},))] = None
    safety_identifier: Annotated[None, Only()] = None
    service_tier: Annotated[None, Only(("auto", "default"))] = None
    store: Annotated[None, Only((False,))] = None
    tool_choice: Annotated[None, Only(("none",))] = None
    tools: Annotated[None, Only(([],))] = None
    verbosity: Annotated[None, Only()] = None
    web_search_options: Annotated[None, Only()] = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise at("top_logprobs", "only allowed when `logprobs` is true")
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise at("max_tokens", "differs from `max_completion_tokens`, of which it is the older name")
        return self

    @property
    def answer_limit(self) -> int | None:
        """Tokens the answer may have at most; None: what the context has left."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives asked for at each token; None: no log-probabilities at all."""
        return (self.top_logprobs or 0) if self.logprobs else None


class TopLogprob(Strict):
    """A token that could have stood there. `bytes` are its UTF-8 bytes, of a part of a character maybe."""

    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(TopLogprob):
    """The token that stands there, and the likeliest ones, best first."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Strict):
    """One entry per token of the answer."""

    content: list[ChatTokenLogprob]
    refusal: None = None


class AnswerMessage(Strict):
    """The assistant's turn."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(Strict):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]
    stop_reason: int | str | None = Field(
        description="the stop token or string that the request named, or `timeout`"
    )


class ChatCompletion(Strict):
    """The answers to a chat."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int = Field(description="seconds since 1970")
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Delta(Strict):
    """What is new in the assistant's turn; the first one says whose turn it is."""

    role: Literal["assistant"] = "assistant"
    content: str = ""
    refusal: None = None


class ChatChunkChoice(Strict):
    """What is new in one answer; the last one has a finish reason."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"] | None
    stop_reason: int | str | None = None


class ChatCompletionChunk(Strict):
    """An event of a stream. After the last one comes `data: [DONE]`; after an error, nothing."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int = Field(description="seconds since 1970")
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
