"""One request from token ids to text, over the link to the scheduler."""

from collections.abc import AsyncGenerator

from gateway.link import SchedulerLink
from gateway.submission import Limits, build_submit
from gateway.tokenizing import Tokenizer
from gateway.transcript import Transcript
from gateway.types import GenerationRequest, Piece


class Generator:
    """Answers requests. Both API surfaces stand on it."""

    def __init__(self, link: SchedulerLink, tokenizer: Tokenizer, limits: Limits) -> None:
        self._link = link
        self._tokenizer = tokenizer
        self._limits = limits

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Piece, None]:
        """Yields the answer in pieces; the last one has a finish reason.

        Closing the generator, or cancelling the task that waits for it, cancels the request at once. Raises
        InvalidRequest, Overloaded or SchedulerLost before the first piece where the request cannot be served
        (at all, or now), and SchedulerLost or InternalError where it fails later.
        """
        submit = build_submit(request, self._limits, self._tokenizer.eos_ids)
        transcript = Transcript(self._tokenizer, request)
        with self._link.submit(submit) as subscription:
            async for update in subscription:
                piece = transcript.add(update)
                if piece is None:
                    continue
                if piece.finish_reason is not None:
                    subscription.close()  # before yielding: at a stop string the scheduler is still at work
                yield piece
