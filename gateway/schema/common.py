"""What the chat and the completion API share: strictness, sampling parameters, usage."""

import json
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    JsonValue,
    Tag,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

INT32 = 2**31 - 1
MAX_STOPS = 16
MAX_TOP_LOGPROBS = 20
MIN_LOGPROB = -9999.0  # OpenAI's word for "impossible": JSON has no infinity


class Strict(BaseModel):
    """Every value has the JSON type it should have, and a field we do not know is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class Only:
    """Marks a parameter that is accepted at the values which ask for nothing, and refused by name at others.

    Clients send such parameters at their defaults; we must not ignore one that asks for something.
    """

    values: tuple[JsonValue, ...] = ()

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        # Compared as JSON, where 0 and false differ.
        accepted = {json.dumps(value) for value in (None, *self.values)}
        described = ", ".join(sorted(accepted))

        def check(value: JsonValue) -> None:
            if json.dumps(value) not in accepted:
                raise PydanticCustomError(
                    "unsupported_parameter",
                    "is not supported (accepted: {accepted})",
                    {"accepted": described},
                )

        return core_schema.no_info_plain_validator_function(check)

    def __get_pydantic_json_schema__(
        self, _schema: CoreSchema, _handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"enum": [None, *self.values], "description": "Accepted for compatibility; does nothing."}


TokenId = Annotated[int, Field(ge=0, le=INT32)]
StopText = Annotated[str, Field(min_length=1, max_length=1024)]


def _stop_kind(value: object) -> str | None:
    return "<text>" if isinstance(value, str) else "<texts>" if isinstance(value, list) else None


# Tags stand in angle brackets so that the path in an error message can leave them out.
Stop = Annotated[
    Annotated[StopText, Tag("<text>")]
    | Annotated[list[StopText], Field(max_length=MAX_STOPS), Tag("<texts>")],
    Discriminator(
        _stop_kind, custom_error_type="stop_type", custom_error_message="should be a text or a list of texts"
    ),
]
BiasKey = Annotated[str, Field(pattern=r"^[0-9]{1,10}$")]
Bias = Annotated[float, Field(ge=-100, le=100)]


class SamplingFields(Strict):
    """How to pick tokens and when to stop, in REST and gRPC. An absent or null field is at its default."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(None, description="0: greedy; default: 1")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=INT32)] | None = Field(None, description="-1 and 0: off")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = Field(
        None, description="the same seed gives the same answer; default: drawn at random"
    )
    min_tokens: Annotated[int, Field(ge=0, le=INT32)] | None = None
    stop: Stop | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=128)] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    logit_bias: Annotated[dict[BiasKey, Bias], Field(max_length=1024)] | None = Field(
        None, description="token id, as a string, to what is added to its logit"
    )
    n: Annotated[int, Field(ge=1, le=128)] | None = Field(None, description="answers to each prompt")


class AnyRequestFields(SamplingFields):
    """What every request may have besides its prompt, in REST and gRPC."""

    priority: Annotated[int, Field(ge=-INT32 - 1, le=INT32)] | None = Field(
        None, description="lower is more urgent; within the key's range; default: 0"
    )
    timeout: Annotated[float, Field(gt=0, le=1e6)] | None = Field(
        None, description="seconds for the whole answer; default: the key's"
    )


class StreamOptions(Strict):
    """What a stream should contain beyond the answer."""

    include_usage: bool | None = None
    include_obfuscation: Annotated[None, Only((False,))] = None


class RequestFields(AnyRequestFields):
    """What both REST requests have besides their prompt."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(
        None, description="requests share cached prompt beginnings only under the same salt"
    )
    user: str | None = Field(None, description="accepted, and not used")

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @model_validator(mode="after")
    def _options_need_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise at("stream_options", "only allowed when `stream` is true")
        return self


def at(param: str, message: str) -> PydanticCustomError:
    """A fault that a whole-request check found in one parameter."""
    return PydanticCustomError("inconsistent", "{message}", {"message": message, "param": param})


class PromptTokensDetails(Strict):
    """Where the prompt's tokens came from."""

    cached_tokens: int = Field(description="prompt tokens found in a cache")


class Usage(Strict):
    """Tokens read and written. A prompt with several answers counts once."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class ErrorInfo(Strict):
    """What went wrong; `param` names the parameter at fault."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Strict):
    """Every answer that is not 2xx."""

    error: ErrorInfo
