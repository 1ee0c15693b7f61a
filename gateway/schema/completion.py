"""`POST /v1/completions`: https://platform.openai.com/docs/api-reference/completions"""

from typing import Annotated, Literal, Self, cast

from pydantic import Discriminator, Field, Tag, model_validator

from gateway.schema.common import INT32, MAX_TOP_LOGPROBS, Only, RequestFields, Strict, TokenId, Usage, at

MAX_PROMPTS = 1024
DEFAULT_MAX_TOKENS = 16  # OpenAI's

TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
Many = Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)


def _prompt_kind(value: object) -> str | None:
    if isinstance(value, str):
        return "<text>"
    if not isinstance(value, list):
        return None
    if value and isinstance(value[0], list):
        return "<lists of ids>"
    if value and isinstance(value[0], int):
        return "<ids>"
    return "<texts>"


Prompt = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[list[str], Many, Tag("<texts>")]
    | Annotated[TokenIds, Tag("<ids>")]
    | Annotated[list[TokenIds], Many, Tag("<lists of ids>")],
    Discriminator(
        _prompt_kind,
        custom_error_type="prompt_type",
        custom_error_message="should be a text, token ids, or a list of either",
    ),
]


class CompletionRequest(RequestFields):
    """Text or token ids to be continued."""

    prompt: Prompt = Field(description="a text, token ids, or a list of either: each is answered by itself")
    max_tokens: Annotated[int, Field(ge=0, le=INT32)] | None = Field(
        DEFAULT_MAX_TOKENS, description="of the answer; null: what the context has left; 0 only with `echo`"
    )
    echo: bool | None = Field(None, description="begin the answer with the prompt")
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = Field(
        None, description="so many alternatives to each token; with `echo`, to those of the prompt too"
    )
    best_of: Annotated[int, Field(ge=1)] | None = Field(None, description="accepted where it equals `n`")
    suffix: Annotated[None, Only(("",))] = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise at("best_of", "only supported where it equals `n`")
        if self.max_tokens == 0 and not self.echo:
            raise at("max_tokens", "must be at least 1, unless `echo` is true")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt by itself: a text or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return cast("list[str | list[int]]", self.prompt)


class CompletionLogprobs(Strict):
    """Lists of one length, an entry per token. A part of a character reads `bytes:` and its bytes in hex."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Strict):
    """One continuation of one prompt. Prompt p's choice c has index p * n + c."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]
    stop_reason: int | str | None = Field(
        description="the stop token or string that the request named, or `timeout`"
    )


class Completion(Strict):
    """The continuations of all prompts."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int = Field(description="seconds since 1970")
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class CompletionChunkChoice(Strict):
    """What is new in one continuation; the last one has a finish reason."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None
    stop_reason: int | str | None = None


class CompletionChunk(Strict):
    """An event of a stream. After the last one comes `data: [DONE]`; after an error, nothing."""

    id: str
    object: Literal["text_completion"]
    created: int = Field(description="seconds since 1970")
    model: str
    choices: list[CompletionChunkChoice]
    usage: Usage | None = None
