"""The way to the scheduler, before and after there is a worker behind it."""

from batchyard.errors import SchedulerLost
from gateway.generation import Generator
from gateway.link import SchedulerLink
from gateway.service import Backend
from gateway.submission import Limits
from gateway.tokenizing import Tokenizer


class LateBackend:
    """Learns what bounds a request from the scheduler, once, when the first request needs it."""

    def __init__(self, link: SchedulerLink, tokenizer: Tokenizer) -> None:
        self._link = link
        self._tokenizer = tokenizer
        self._known: Backend | None = None

    async def get(self) -> Backend:
        """Raises SchedulerLost where the scheduler stays away, or no worker has told it of the model."""
        if self._known is None:
            await self._link.wait_connected()
            description = await self._link.describe()
            if not description.max_model_len:
                raise SchedulerLost("No worker has loaded the model yet.")
            limits = Limits(description.max_model_len, description.vocab_size)
            self._known = Backend(Generator(self._link, self._tokenizer, limits), limits)
        return self._known
