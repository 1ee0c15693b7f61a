"""What is served, to both API surfaces: one model, its tokenizer, and who generates its answers."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from batchyard.errors import SchedulerLost
from gateway.errors import BadParameter, ModelNotFound
from gateway.readiness import Describe, why_not_ready
from gateway.shaping import UNBOUNDED, Shape
from gateway.submission import Limits
from gateway.types import GenerationRequest, Piece


class Tokenizes(Protocol):
    """The model's tokenizer, as far as the API needs it."""

    def least_tokens(self, characters: int) -> int:
        """How few tokens a text of so many characters can be."""

    async def encode_async(self, text: str) -> list[int]:
        """Token ids of `text`, the model's begin token included."""

    async def render_chat_async(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of a conversation, by the model's chat template."""

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of `token_ids`."""

    def token_bytes(self, token_id: int) -> bytes:
        """What one token spells: a part of UTF-8 text."""


class Generates(Protocol):
    """Turns a prompt into an answer."""

    def generate(self, request: GenerationRequest) -> AsyncIterator[Piece]:
        """The answer, as it comes. Closing the iterator cancels the request."""


@dataclass(frozen=True, slots=True)
class Backend:
    """A generator, and what bounds a request to it."""

    generator: Generates
    limits: Limits


@dataclass(frozen=True, slots=True)
class Service:
    """One model and everything that answers for it."""

    model: str  # its name in the API
    tokenizer: Tokenizes
    backend: Callable[[], Awaitable[Backend]]  # raises SchedulerLost before a worker has come
    describe: Describe
    shape: Shape = UNBOUNDED  # what this server lets requests ask for
    created: int = field(default_factory=lambda: int(time.time()))  # seconds since 1970

    def check_model(self, model: str) -> None:
        """Raises ModelNotFound where `model` is not the one served."""
        if model != self.model:
            raise ModelNotFound(model, self.model)

    async def prompt_ids(self, prompt: str | Sequence[int]) -> tuple[int, ...]:
        """Token ids of a text; or token ids as they are. Raises InvalidRequest, and as `backend` does."""
        if not isinstance(prompt, str):
            return tuple(prompt)
        await self._check_length(len(prompt))
        return tuple(await self.tokenizer.encode_async(prompt))

    async def chat_ids(self, turns: Sequence[Mapping[str, str]]) -> tuple[int, ...]:
        """Token ids of a conversation of roles and contents. Raises InvalidRequest, and as `backend` does."""
        await self._check_length(sum(len(turn["content"]) for turn in turns))
        return tuple(await self.tokenizer.render_chat_async(turns))

    async def _check_length(self, characters: int) -> None:
        """Refuses what cannot fit, before encoding it takes seconds and gigabytes. Raises BadParameter."""
        least = self.tokenizer.least_tokens(characters)
        limits = (await self.backend()).limits
        if least > limits.max_model_len:
            raise BadParameter(
                f"This model's maximum context length is {limits.max_model_len} tokens. However, your prompt "
                f"has {characters} characters, at least {least} tokens. Please reduce its length.",
                code="context_length_exceeded",
            )

    async def why_not_ready(self) -> str | None:
        """Why no request could be answered now; None when one could."""
        try:
            return why_not_ready(await self.describe())
        except SchedulerLost as error:
            return str(error)
