"""A scheduler process that has no workers and gives out tokens by the clock, over real gRPC.

`python -m bench.simulation.pulse ADDRESS NAME RECORD` serves one gateway, or several; NAME and RECORD are not
used. How a request is answered is in its id:

    idle-...    its first token at once, then one every IDLE_SECONDS or so
    steady-...  its first token at once, then one every STEADY_SECONDS or so
    others      their first token at once, then one with every beat

A beat is a step of a batch: one message has everybody's tokens.
"""

import asyncio
import contextlib
import gc
import random
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from batchyard.lifeline import end_with_parent
from batchyard.rpc import RpcServer
from protos.packing import pack_i32, pack_u64
from protos.scheduling_pb2 import (
    FINISH_REASON_LENGTH,
    DescribeRequest,
    Description,
    Finished,
    GatewayMessage,
    SchedulerMessage,
    Started,
    Submit,
    WarmReply,
    WarmRequest,
    WorkerState,
)
from protos.scheduling_pb2_grpc import SchedulerServicer, add_SchedulerServicer_to_server

SERVICE = "batchyard.internal.v1.Scheduler"
BEAT = 0.01  # seconds
IDLE_SECONDS, STEADY_SECONDS = 10.0, 0.05
VOCAB, MAX_MODEL_LEN = 6144, 1 << 20

_EVERY = {"idle": IDLE_SECONDS, "steady": STEADY_SECONDS}


@dataclass(slots=True)
class _Stream:
    """A request. `next` by the event loop's clock."""

    number: int
    left: int  # tokens
    every: float  # seconds
    next: float


class Pulse(SchedulerServicer):
    """Gives everybody tokens."""

    async def Describe(self, request: DescribeRequest, context: Any) -> Description:  # noqa: N802
        """Always ready."""
        worker = WorkerState(worker_id="pulse", connected=True)
        return Description(ready=True, max_model_len=MAX_MODEL_LEN, vocab_size=VOCAB, workers=[worker])

    async def Warm(self, request: WarmRequest, context: Any) -> WarmReply:  # noqa: N802
        """There is nothing to warm."""
        return WarmReply()

    async def Connect(  # noqa: N802 - named by the protocol
        self, request_iterator: AsyncIterator[GatewayMessage], context: Any
    ) -> AsyncIterator[SchedulerMessage]:
        """Serves one gateway."""
        gateway = _Gateway()
        tasks = [asyncio.create_task(gateway.read(request_iterator)), asyncio.create_task(gateway.beat())]
        try:
            while True:
                yield await gateway.outbox.get()
        finally:
            for task in tasks:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*tasks)


class _Gateway:
    def __init__(self) -> None:
        self.outbox: asyncio.Queue[SchedulerMessage] = asyncio.Queue()
        self._streams: dict[int, _Stream] = {}

    async def read(self, messages: AsyncIterator[GatewayMessage]) -> None:
        async for message in messages:
            begun = [self._begin(submit) for submit in message.submit]
            if begun:
                self._give(begun)
            for number in message.cancel:
                self._streams.pop(number, None)

    async def beat(self) -> None:
        loop = asyncio.get_running_loop()
        at = loop.time()
        while True:
            at = max(at + BEAT, loop.time())
            await asyncio.sleep(at - loop.time())
            due = [stream for stream in self._streams.values() if stream.next <= at]
            if due:
                self._give(due)

    def _begin(self, submit: Submit) -> _Stream:
        every = _EVERY.get(submit.request_id.partition("-")[0], 0.0)
        stream = _Stream(submit.id, submit.max_tokens, every, 0.0)
        self._streams[submit.id] = stream
        return stream

    def _give(self, streams: list[_Stream]) -> None:
        now = asyncio.get_running_loop().time()
        message = SchedulerMessage(
            ids=pack_u64(np.array([stream.number for stream in streams], np.uint64)),
            counts=pack_i32(np.ones(len(streams), np.int32)),
            tokens=pack_i32([random.randrange(VOCAB // 2, VOCAB) for _ in streams]),
        )
        for stream in streams:
            if not stream.next:
                message.started.append(Started(id=stream.number))
            # Not all at the same time, although many began together.
            stream.next = now + stream.every * random.uniform(0.5, 1.5)
            stream.left -= 1
            if not stream.left:
                del self._streams[stream.number]
                message.finished.append(Finished(id=stream.number, reason=FINISH_REASON_LENGTH))
        self.outbox.put_nowait(message)


async def run(address: str) -> None:
    """Serves until told to end."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server = RpcServer(address)
    server.add(add_SchedulerServicer_to_server, Pulse(), SERVICE)
    await server.start()
    await server.set_serving(True)
    gc.freeze()
    await stop.wait()
    await server.stop(0)


if __name__ == "__main__":
    end_with_parent(0)
    asyncio.run(run(sys.argv[1]))
