"""When a worker that is away is tried again."""

import asyncio
import contextlib

_WAITS = (0.1, 0.2, 0.5, 1.0)  # seconds, after so many failures in a row


class Retries:
    """The waits between attempts, which grow, and end when there is news of the worker."""

    def __init__(self) -> None:
        self._failures = 0
        self._news = asyncio.Event()

    def hurry(self) -> None:
        """There is news of it: the wait is over, or the next one will be short."""
        self._news.set()

    def succeeded(self) -> None:
        """The last attempt did not fail."""
        self._failures = 0

    async def wait(self, alone: float) -> None:
        """Until the next attempt. For `alone` seconds the worker is left alone, whatever the news."""
        await asyncio.sleep(alone)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), _WAITS[min(self._failures, len(_WAITS) - 1)])
        self._news.clear()
        self._failures += 1
