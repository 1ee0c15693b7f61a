"""One connected gateway: its live requests, and the messages on their way to it."""

import asyncio
import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from protos.packing import pack_i32, pack_u64
from protos.sampling_pb2 import Logprobs
from protos.scheduling_pb2 import (
    FINISH_REASON_FAILED,
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    FINISH_REASON_TIMEOUT,
    Finished,
    FinishReason,
    PromptLogprobs,
    RefusalReason,
    Refused,
    SchedulerMessage,
    Started,
    TokenLogprobs,
)
from scheduler.request import Request, Tokens

_REASONS = {
    FINISH_REASON_STOP: "stop",
    FINISH_REASON_LENGTH: "length",
    FINISH_REASON_FAILED: "failed",
    FINISH_REASON_TIMEOUT: "timeout",
}


class Session:
    """What is to be said is collected and sent as one message per step."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.requests: dict[int, Request] = {}
        self.outbox: asyncio.Queue[SchedulerMessage | None] = asyncio.Queue()  # None: the end
        self._next = SchedulerMessage()

    def has(self, request: Request) -> bool:
        """Whether `request` is not over."""
        return self.requests.get(request.id) is request

    def started(self, request: Request) -> None:
        """The request has its first token; said along with it."""
        timing = request.timeline.timing()
        cached = timing.device_tokens + timing.host_tokens
        self._next.started.append(Started(id=request.id, cached_tokens=cached, timing=timing))

    def tokens(self, ids: npt.NDArray[np.uint64], tokens: Tokens) -> None:
        """One new token, `tokens[i]`, for each request `ids[i]`."""
        self._next.ids = pack_u64(ids)
        self._next.counts = pack_i32(np.ones(len(ids), np.int32))
        self._next.tokens = pack_i32(tokens)

    def logprobs(self, request: Request, logprobs: Logprobs) -> None:
        """Of the token just given."""
        self._next.logprobs.append(TokenLogprobs(id=request.id, logprobs=logprobs))

    def prompt_logprobs(self, request: Request, start: int, positions: list[Logprobs]) -> None:
        """Of the prompt tokens from position `start` on."""
        self._next.prompt_logprobs.append(PromptLogprobs(id=request.id, start=start, positions=positions))

    def finished(
        self, request: Request, reason: "FinishReason.ValueType", stop_token: int = -1, error: str = ""
    ) -> None:
        """The request is over and forgotten."""
        del self.requests[request.id]
        request.timeline.end(_REASONS[reason])
        self._next.finished.append(
            Finished(
                id=request.id,
                reason=reason,
                stop_token=stop_token,
                error=error,
                timing=request.timeline.timing(),
            )
        )

    def refused(
        self, request_id: int, reason: "RefusalReason.ValueType", message: str, retry_after_s: float = 0.0
    ) -> None:
        """The request never ran; it is forgotten if it had been taken."""
        self.requests.pop(request_id, None)
        milliseconds = math.ceil(1000 * retry_after_s)
        self._next.refused.append(
            Refused(id=request_id, reason=reason, message=message, retry_after_ms=milliseconds)
        )

    def flush(self) -> None:
        """Sends what has been collected since the last flush, if anything."""
        message = self._next
        if message.ids or message.finished or message.refused or message.prompt_logprobs:
            self.outbox.put_nowait(message)
            self._next = SchedulerMessage()


class Sessions:
    """The connected gateways, by number."""

    def __init__(self) -> None:
        self._sessions: dict[int, Session] = {}
        self._numbers = 0

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._sessions.values()))

    def open(self) -> Session:
        """A new session."""
        self._numbers += 1
        self._sessions[self._numbers] = Session(self._numbers)
        return self._sessions[self._numbers]

    def close(self, session: Session) -> list[Request]:
        """Forgets a session; its live requests are returned, to be cancelled. None the second time."""
        self._sessions.pop(session.number, None)
        requests = list(session.requests.values())
        session.requests.clear()
        return requests

    def tokens(
        self,
        numbers: npt.NDArray[np.int64],
        ids: npt.NDArray[np.uint64],
        tokens: Tokens,
    ) -> None:
        """Hands each session its part of one step's tokens."""
        for number in np.unique(numbers).tolist():
            if session := self._sessions.get(number):
                own = numbers == number
                session.tokens(ids[own], tokens[own])

    def flush(self) -> None:
        """Sends one message to every session that has news."""
        for session in self._sessions.values():
            session.flush()
