"""How long requests wait, prefill and decode."""

from collections.abc import Callable

from batchyard.metrics.buckets import PHASE_S
from batchyard.metrics.distribution import Distribution
from scheduler.request import Request


class RequestTimes:
    """In seconds, of those that began here: what goes on after another scheduler's death tells nothing new.

    queue     from arrival to its first row
    prefill   from then to its first token, pauses included
    decode    from then to its last token, where it came to its own end
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` gives seconds."""
        self.queue = Distribution(PHASE_S)
        self.prefill = Distribution(PHASE_S)
        self.decode = Distribution(PHASE_S)
        self._clock = clock

    def began(self, request: Request) -> None:
        """`request` has a row, for the first time."""
        request.began_at = self._clock()
        self.queue.observe(request.began_at - request.arrived)

    def sampled(self, request: Request) -> None:
        """`request` has a token at the end of a prefill: its first one, or one after a pause."""
        if request.first_token_at is None and request.began_at is not None:
            request.first_token_at = self._clock()
            self.prefill.observe(request.first_token_at - request.began_at)

    def finished(self, request: Request) -> None:
        """`request` has its last token."""
        if request.first_token_at is not None:
            self.decode.observe(self._clock() - request.first_token_at)
