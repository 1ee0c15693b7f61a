"""The receiving end of requests: what the scheduler says of each, merged until its reader comes for it."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from batchyard.errors import (
    BatchyardError,
    InvalidRequest,
    Overloaded,
    RequestFailed,
    SchedulerLost,
    ServerFull,
)
from protos.packing import unpack_i32, unpack_u64
from protos.sampling_pb2 import Logprobs
from protos.scheduling_pb2 import (
    FINISH_REASON_FAILED,
    REFUSAL_REASON_INVALID,
    REFUSAL_REASON_OVER_SHARE,
    REFUSAL_REASON_OVERLOADED,
    Finished,
    Refused,
    SchedulerMessage,
)


@dataclass(slots=True)
class Update:
    """What is new of one request since the last update."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[Logprobs] = field(default_factory=list)  # one per token, if asked for
    prompt_logprobs: list[Logprobs] = field(default_factory=list)  # of prompt tokens from the second on
    cached_tokens: int = 0  # of the prompt, in one of the updates up to the first with tokens
    finished: Finished | None = None  # in the last update


class Subscription:
    """Iterates over the updates of one request; closing it before its end cancels the request.

    A reader that falls behind finds all it missed in one update. The iteration ends after the update that has
    `finished`, or else with the error that ended the request, after what came before the error.
    """

    def __init__(self, submit_id: int, on_close: Callable[[int], None]) -> None:
        """`on_close` is called with `submit_id`, once, when the reader is done with the request."""
        self._id = submit_id
        self._on_close = on_close
        self._pending = Update()
        self._next_scored = 1  # prompt position whose log-probability comes next
        self._error: BatchyardError | None = None
        self._news = asyncio.Event()  # set while there is something to read
        self._closed = False

    def close(self) -> None:
        """Ends the iteration, and the request if it still runs. Does nothing the second time."""
        if not self._closed:
            self._closed = True
            self._news.set()
            self._on_close(self._id)

    def __enter__(self) -> "Subscription":
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __aiter__(self) -> "Subscription":
        return self

    async def __anext__(self) -> Update:
        """Raises InvalidRequest, Overloaded, SchedulerLost or RequestFailed where that ended the request."""
        await self._news.wait()
        if self._closed:
            raise StopAsyncIteration
        update, self._pending = self._pending, Update()
        if self._error is None:
            self._news.clear()
        elif update == Update():
            self.close()
            raise self._error
        if update.finished is not None:
            self.close()
        return update

    def pending(self) -> Update:
        """What the next update will have, to be added to. The reader is woken."""
        self._news.set()
        return self._pending

    def add_prompt_logprobs(self, start: int, positions: Sequence[Logprobs]) -> None:
        """Adds those of the prompt tokens from position `start` on, but for what came before: a request that
        lost its row reads its prompt again.

        Raises ValueError where some are missing.
        """
        if start > self._next_scored:
            raise ValueError(f"log-probabilities of the prompt jump from {self._next_scored} to {start}")
        new = positions[self._next_scored - start :]
        self._next_scored += len(new)
        self.pending().prompt_logprobs.extend(new)

    def fail(self, error: BatchyardError) -> None:
        """Ends the request with `error`, which the reader gets after what it has not read yet."""
        self._error = error
        self._news.set()


class Subscriptions:
    """The live requests of one stream, by the ids under which they were submitted."""

    def __init__(self) -> None:
        self._live: dict[int, Subscription] = {}

    def __len__(self) -> int:
        return len(self._live)

    def add(self, submit_id: int, on_close: Callable[[int], None]) -> Subscription:
        """A subscription to what will be dealt out to `submit_id`."""
        self._live[submit_id] = subscription = Subscription(submit_id, on_close)
        return subscription

    def remove(self, submit_id: int) -> bool:
        """Whether the request was live: its end is not known yet."""
        return self._live.pop(submit_id, None) is not None

    def deal(self, message: SchedulerMessage) -> None:
        """Hands everything in `message` to its request. What is for a request no longer live is dropped.

        Raises ValueError where the message's arrays do not fit together.
        """
        self._deal_tokens(message)
        for started in message.started:
            if subscription := self._live.get(started.id):
                subscription.pending().cached_tokens = started.cached_tokens
        for token in message.logprobs:
            if subscription := self._live.get(token.id):
                subscription.pending().logprobs.append(token.logprobs)
        for prompt in message.prompt_logprobs:
            if subscription := self._live.get(prompt.id):
                subscription.add_prompt_logprobs(prompt.start, prompt.positions)
        for finished in message.finished:
            if subscription := self._live.pop(finished.id, None):
                _finish(subscription, finished)
        for refused in message.refused:
            if subscription := self._live.pop(refused.id, None):
                subscription.fail(_refusal(refused))

    def fail_all(self, error: BatchyardError) -> None:
        """Ends every live request with `error`."""
        live, self._live = self._live, {}
        for subscription in live.values():
            subscription.fail(error)

    def _deal_tokens(self, message: SchedulerMessage) -> None:
        counts = unpack_i32(message.counts).tolist()
        tokens = unpack_i32(message.tokens).tolist()
        if sum(counts) != len(tokens):
            raise ValueError(f"a message with {len(tokens)} tokens counts {sum(counts)}")
        end = 0
        for submit_id, count in zip(unpack_u64(message.ids).tolist(), counts, strict=True):
            start, end = end, end + count
            if subscription := self._live.get(submit_id):
                subscription.pending().token_ids += tokens[start:end]


def _finish(subscription: Subscription, finished: Finished) -> None:
    if finished.reason == FINISH_REASON_FAILED:
        subscription.fail(RequestFailed(finished.error))
    else:
        subscription.pending().finished = finished


def _refusal(refused: Refused) -> BatchyardError:
    if refused.reason == REFUSAL_REASON_INVALID:
        return InvalidRequest(refused.message)
    retry_after_s = refused.retry_after_ms / 1000
    if refused.reason == REFUSAL_REASON_OVER_SHARE:
        return Overloaded(refused.message, retry_after_s)
    if refused.reason == REFUSAL_REASON_OVERLOADED:
        return ServerFull(refused.message, retry_after_s)
    return SchedulerLost(refused.message)
