"""Requests and schedulers for tests."""

import asyncio

import numpy as np

from batchyard.spans import SpanRecorder
from protos.packing import pack_i32, unpack_i32, unpack_u64
from protos.sampling_pb2 import Sampling
from protos.scheduling_pb2 import FINISH_REASON_STOP, Submit
from scheduler.connection import LaneOptions
from scheduler.core import Scheduler
from scheduler.lease import Lease
from scheduler.tracing import RequestSpans

QUEUEING = ("tenant", "weight", "priority", "timeout_ms", "accepted", "traceparent")


def submit(id, prompt, max_tokens, stop_ids=(), salt="", **fields):
    queueing = {name: fields.pop(name) for name in QUEUEING if name in fields}
    return Submit(
        id=id,
        request_id=f"request-{id}",
        tokens=pack_i32(prompt),
        prompt_len=len(prompt),
        max_tokens=max_tokens,
        sampling=Sampling(stop_token_ids=pack_i32(sorted(stop_ids)), **fields),
        cache_salt=salt,
        **queueing,
    )


def held_lease(fence: int = 7) -> Lease:
    """Of an active scheduler."""
    lease = Lease()
    lease.hold(fence)
    return lease


def make_scheduler(
    *transports, steps_in_flight=2, caching=True, step_timeout=60.0, calm=384, export=None, **more
):
    """`export` is told of the spans."""
    options = LaneOptions(steps_in_flight, step_timeout, caching, calm)
    return Scheduler(transports, options, RequestSpans(SpanRecorder(export)), **more)


class Client:
    """Plays a gateway on a session, and keeps what each request got."""

    def __init__(self, scheduler):
        self.scheduler = scheduler
        self.session = scheduler.sessions.open()
        self.tokens = {}
        self.finished = {}
        self.cached = {}
        self.refused = {}
        self.messages = 0

    def submit(self, *args, **kwargs):
        message = submit(*args, **kwargs)
        self.tokens[message.id] = []
        self.scheduler.submit(self.session, message)

    async def take(self):
        message = await self.session.outbox.get()
        self.messages += 1
        counts = unpack_i32(message.counts)
        parts = np.split(unpack_i32(message.tokens), np.cumsum(counts)[:-1]) if len(counts) else []
        for id, part in zip(unpack_u64(message.ids).tolist(), parts, strict=True):
            assert id not in self.finished
            self.tokens[id] += part.tolist()
        for started in message.started:
            assert started.id not in self.cached
            self.cached[started.id] = started.cached_tokens
        for finished in message.finished:
            assert (finished.reason == FINISH_REASON_STOP) == (finished.stop_token >= 0)
            self.finished[finished.id] = finished
        for refused in message.refused:
            self.refused[refused.id] = refused

    async def until(self, condition, seconds=10):
        async with asyncio.timeout(seconds):
            while not condition():
                await self.take()

    async def all_finished(self):
        await self.until(lambda: len(self.finished) + len(self.refused) == len(self.tokens))
