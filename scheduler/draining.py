"""Whether a worker is to be let go. Its process, that is: another one at its address is taken on again."""

import asyncio


class Drain:
    """Of one worker's processes, each known by its epoch."""

    def __init__(self) -> None:
        self._epoch: int | None = None
        self._moved = 0
        self._done = asyncio.Event()

    def covers(self, epoch: int) -> bool:
        """Whether that process is to be let go, or has been."""
        return epoch == self._epoch

    def begin(self, epoch: int) -> None:
        """That process is to be let go."""
        self._epoch = epoch
        self._moved = 0
        self._done = asyncio.Event()

    def moved(self, requests: int) -> None:
        """So many have been taken back from it."""
        self._moved += requests

    def finish(self) -> int:
        """It has been let go; returns how many requests went elsewhere."""
        self._done.set()
        return self._moved

    def undo(self) -> None:
        """It is to be used again."""
        self._epoch = None
        self._done.set()

    async def done(self) -> int:
        """Returns when it has been let go, or is no longer to be: how many requests went elsewhere."""
        done = self._done
        await done.wait()
        return self._moved
