"""The answers to one API request: what is asked of the generator, and what it gave, as a whole."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from gateway.errors import BadParameter
from gateway.observation import Observation
from gateway.sampling import choice_seed
from gateway.streaming import Indexed
from gateway.types import FinishReason, GenerationRequest, Piece, SamplingParams, Terms, TokenLogprob

MAX_ANSWERS = 4096  # to one API request


def fan_out(
    prompts: Sequence[tuple[int, ...]],
    n: int,
    params: SamplingParams,
    max_tokens: Sequence[int],
    terms: Terms,
    observation: Observation,
) -> list[GenerationRequest]:
    """One request for each answer: prompt p's choice c is the (p * n + c)-th, with `max_tokens[p]` tokens.

    Raises BadParameter.
    """
    total = len(prompts) * n
    if total > MAX_ANSWERS:
        message = f"{len(prompts)} prompts times n={n} are {total} answers; the limit is {MAX_ANSWERS}."
        raise BadParameter(message, "n", "invalid_value")
    name = observation.request_id
    return [
        GenerationRequest(
            request_id=name if total == 1 else f"{name}-{index}",
            prompt_ids=prompts[index // n],
            params=replace(
                params, max_tokens=max_tokens[index // n], seed=choice_seed(params.seed, index % n)
            ),
            traceparent=observation.traceparent_for(index),
            terms=terms,
        )
        for index in range(total)
    ]


@dataclass(slots=True)
class WholeAnswer:
    """One whole answer, put together from its pieces."""

    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason = "stop"
    stop_reason: int | str | None = None

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        self.logprobs += piece.logprobs
        if piece.finish_reason:
            self.finish_reason = piece.finish_reason
            self.stop_reason = piece.stop_reason


async def observed(pieces: AsyncGenerator[Indexed], observation: Observation) -> AsyncGenerator[Indexed]:
    """The same pieces, each shown to `observation` as it passes."""
    async with aclosing(pieces):
        async for index, piece in pieces:
            observation.piece(index, piece)
            yield index, piece


async def collect(pieces: AsyncGenerator[Indexed], count: int) -> list[WholeAnswer]:
    """All `count` answers, when all have ended."""
    answers = [WholeAnswer() for _ in range(count)]
    async with aclosing(pieces):
        async for index, piece in pieces:
            answers[index].add(piece)
    return answers
