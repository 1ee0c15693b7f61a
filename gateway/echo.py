"""`echo`: answers that begin with their prompt, and log-probabilities that begin with the prompt's."""

import math
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, replace

from gateway.service import Tokenizes
from gateway.streaming import closing
from gateway.types import Candidate, Piece, TokenLogprob
from protos.scheduling_pb2 import Timing

# The first token of a prompt has none: there is nothing before it to tell it from.
NO_LOGPROB = math.nan


@dataclass(frozen=True, slots=True)
class EchoedPrompt:
    """A prompt as its answer repeats it: the text, and the tokens that score it."""

    text: str
    ids: tuple[int, ...]
    tokenizer: Tokenizes

    def logprobs_in(self, piece: Piece) -> tuple[TokenLogprob, ...]:
        """Those of the prompt in an answer's first piece; none where they were not asked for."""
        return tuple(entry or self._first_token() for entry in piece.prompt_logprobs)

    def _first_token(self) -> TokenLogprob:
        data = self.tokenizer.token_bytes(self.ids[0])
        first = Candidate(self.ids[0], data.decode("utf-8", "replace"), data, NO_LOGPROB)
        return TokenLogprob(first, (), 0)


async def echo(pieces: AsyncIterator[Piece], prompt: EchoedPrompt) -> AsyncGenerator[Piece]:
    """The same answer with the prompt before it."""
    begun = False
    shift = len(prompt.text)
    async with closing(pieces):
        async for piece in pieces:
            answer = tuple(replace(entry, text_offset=entry.text_offset + shift) for entry in piece.logprobs)
            if begun:
                yield replace(piece, logprobs=answer)
            else:
                begun = True
                logprobs = (*prompt.logprobs_in(piece), *answer)
                yield replace(piece, text=prompt.text + piece.text, logprobs=logprobs)


async def echo_only(pieces: AsyncIterator[Piece], prompt: EchoedPrompt) -> AsyncGenerator[Piece]:
    """The prompt and nothing else: what max_tokens=0 asks for. `pieces` is an answer of one token, dropped.

    That token is computed so that the prompt is checked, cached and scored like any other.
    """
    logprobs: tuple[TokenLogprob, ...] = ()
    cached_tokens = 0
    timing: Timing | None = None
    async with closing(pieces):
        async for piece in pieces:
            logprobs = logprobs or prompt.logprobs_in(piece)
            cached_tokens += piece.cached_tokens
            timing = piece.timing or timing
    yield Piece(prompt.text, (), logprobs, finish_reason="length", cached_tokens=cached_tokens, timing=timing)
