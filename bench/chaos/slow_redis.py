"""Between the service and its Redis: a proxy that can make it slow."""

from contextlib import AsyncExitStack

from bench.delay_proxy import Delay, delaying
from bench.fleet import free_port


class SlowRedis:
    """An asynchronous context manager: while it is entered, `url` leads to the Redis at `real_port`."""

    def __init__(self, real_port: int) -> None:
        self.real_port = real_port
        self.delay = Delay(0.0)
        self._port = free_port()
        self.url = f"redis://127.0.0.1:{self._port}/0"
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> "SlowRedis":
        here, there = f"127.0.0.1:{self._port}", f"127.0.0.1:{self.real_port}"
        await self._stack.enter_async_context(delaying(here, there, self.delay))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()
