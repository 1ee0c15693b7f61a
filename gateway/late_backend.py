"""The way to the scheduler, before and after there is a worker behind it."""

import asyncio

from batchyard.errors import SchedulerLost
from gateway.generation import Generator
from gateway.link import SchedulerLink
from gateway.service import Backend
from gateway.submission import Limits
from gateway.tokenizing import Tokenizer
from protos.scheduling_pb2 import Description

_SETTLING_S = 3.0  # in which workers find a scheduler that has just become the active one
_ASK_EVERY_S = 0.05


class LateBackend:
    """Learns what bounds a request from the scheduler, once, when the first request needs it."""

    def __init__(self, link: SchedulerLink, tokenizer: Tokenizer, *, settling_s: float = _SETTLING_S) -> None:
        self._link = link
        self._tokenizer = tokenizer
        self._settling_s = settling_s
        self._known: Backend | None = None

    async def get(self) -> Backend:
        """Raises SchedulerLost where the scheduler stays away, or no worker has told it of the model."""
        if self._known is None:
            description = await self._describe()
            limits = Limits(description.max_model_len, description.vocab_size)
            self._known = Backend(Generator(self._link, self._tokenizer, limits), limits)
        return self._known

    async def _describe(self) -> Description:
        settled: float | None = None
        while True:
            await self._link.wait_connected()
            description = await self._link.describe()
            if description.max_model_len:
                return description
            now = asyncio.get_running_loop().time()
            settled = settled or now + self._settling_s
            if now >= settled:
                raise SchedulerLost("No worker has loaded the model yet.")
            await asyncio.sleep(_ASK_EVERY_S)
