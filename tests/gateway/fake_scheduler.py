"""A scheduler for the gateway to talk to: a real gRPC server whose answers the test gives."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc

from batchyard.fence import metadata
from batchyard.rpc import RpcServer
from gateway.link import SchedulerLink
from protos.packing import pack_i32, pack_u64
from protos.sampling_pb2 import Logprobs
from protos.scheduling_pb2 import (
    DescribeRequest,
    Description,
    Finished,
    GatewayMessage,
    PromptLogprobs,
    SchedulerMessage,
    Submit,
    TokenLogprobs,
    WarmPrompt,
    WarmReply,
    WarmRequest,
)
from protos.scheduling_pb2_grpc import SchedulerServicer, add_SchedulerServicer_to_server

DEADLINE_S = 10


class FakeScheduler(SchedulerServicer):
    """Records what a gateway says; says what the test tells it to."""

    def __init__(self, fence: int = 1, *, active: bool = True) -> None:
        self.fence = fence
        self.active = asyncio.Event()
        if active:
            self.active.set()
        self.description: Description | None = Description(ready=True, max_model_len=64, vocab_size=500)
        self.described = 0  # times
        self.messages: list[GatewayMessage] = []
        self.warm_prompts: list[WarmPrompt] = []
        self.refusals = 0  # so many calls of Warm fail first
        self.on_submit: Callable[[Submit], None] = lambda submit: None
        self._heard = asyncio.Condition()
        self._outbox: asyncio.Queue[SchedulerMessage | None] = asyncio.Queue()

    @property
    def submits(self) -> list[Submit]:
        return [submit for message in self.messages for submit in message.submit]

    @property
    def cancels(self) -> list[int]:
        return [submit_id for message in self.messages for submit_id in message.cancel]

    async def hear(self, condition: Callable[[], bool]) -> None:
        """Waits until the messages so far fulfil `condition`."""
        async with self._heard:
            await self._heard.wait_for(condition)

    def send(self, message: SchedulerMessage) -> None:
        self._outbox.put_nowait(message)

    def hang_up(self) -> None:
        """Ends the stream from this side."""
        self._outbox.put_nowait(None)

    async def Connect(
        self, request_iterator: AsyncIterator[GatewayMessage], context: Any
    ) -> AsyncIterator[SchedulerMessage]:
        await self.active.wait()
        await context.send_initial_metadata(metadata(self.fence))
        self._outbox = asyncio.Queue()
        listening = asyncio.create_task(self._listen(request_iterator))
        try:
            while (message := await self._outbox.get()) is not None:
                yield message
        finally:
            listening.cancel()

    async def _listen(self, messages: AsyncIterator[GatewayMessage]) -> None:
        async for message in messages:
            async with self._heard:
                self.messages.append(message)
                self._heard.notify_all()
            for submit in message.submit:
                self.on_submit(submit)

    async def Warm(self, request: WarmRequest, context: Any) -> WarmReply:
        if self.refusals:
            self.refusals -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        self.warm_prompts.extend(request.prompts)
        return WarmReply()

    async def Describe(self, request: DescribeRequest, context: Any) -> Description:
        self.described += 1
        if self.description is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        return self.description


@contextmanager
def deadline() -> Iterator[None]:
    """Cancels every task of the running loop when it takes too long: a test that waits in vain fails."""
    loop = asyncio.get_running_loop()
    handle = loop.call_later(DEADLINE_S, lambda: [task.cancel() for task in asyncio.all_tasks(loop)])
    try:
        yield
    finally:
        handle.cancel()


@asynccontextmanager
async def serving(scheduler: FakeScheduler, socket: Path) -> AsyncIterator[str]:
    """Serves it; gives the address."""
    server = RpcServer(f"unix:{socket}")
    server.add(add_SchedulerServicer_to_server, scheduler, "batchyard.internal.v1.Scheduler")
    await server.start()
    try:
        yield server.address
    finally:
        await server.stop(grace=0)


@asynccontextmanager
async def connected(
    scheduler: FakeScheduler, socket: Path, wait_s: float = 30.0
) -> AsyncIterator[SchedulerLink]:
    """A link with its stream open."""
    async with serving(scheduler, socket) as address, SchedulerLink([address], wait_s=wait_s) as link:
        await link.wait_connected()
        yield link


def tokens(*given: tuple[int, Sequence[int]], **rest: Any) -> SchedulerMessage:
    """A message with tokens, by submit id."""
    return SchedulerMessage(
        ids=pack_u64([submit_id for submit_id, _ in given]),
        counts=pack_i32([len(ids) for _, ids in given]),
        tokens=pack_i32([token_id for _, ids in given for token_id in ids]),
        **rest,
    )


def ending(submit_id: int, ids: Sequence[int], reason: int, **fields: Any) -> SchedulerMessage:
    """A message with the last tokens of a request."""
    finished = Finished(id=submit_id, reason=reason, **fields)  # type: ignore[arg-type]
    return tokens((submit_id, ids), finished=[finished])


def token_logprobs(submit_id: int, logprobs: Logprobs) -> TokenLogprobs:
    return TokenLogprobs(id=submit_id, logprobs=logprobs)


def prompt_logprobs(submit_id: int, start: int, positions: list[Logprobs]) -> PromptLogprobs:
    return PromptLogprobs(id=submit_id, start=start, positions=positions)
