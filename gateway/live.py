"""The requests whose end is not known, and the news of them as it comes from a scheduler."""

from collections.abc import Callable, Iterator

from batchyard.errors import BatchyardError, InvalidRequest, Overloaded, SchedulerLost, ServerFull
from gateway.subscription import Subscription
from protos.packing import unpack_i32, unpack_u64
from protos.scheduling_pb2 import (
    REFUSAL_REASON_INVALID,
    REFUSAL_REASON_OVER_SHARE,
    REFUSAL_REASON_OVERLOADED,
    Refused,
    SchedulerMessage,
    Submit,
)


class LiveRequests:
    """By the ids under which they are submitted, in that order."""

    def __init__(self) -> None:
        self._live: dict[int, Subscription] = {}

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[Subscription]:
        return iter(list(self._live.values()))

    def add(self, submit: Submit, on_close: Callable[[int], None], now: float) -> Subscription:
        """A subscription to what will be dealt out to the id of `submit`."""
        self._live[submit.id] = subscription = Subscription(submit, on_close, now)
        return subscription

    def get(self, submit_id: int) -> Subscription | None:
        """The subscription, while the request is live."""
        return self._live.get(submit_id)

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
                subscription.start(started.cached_tokens, started.timing)
        for token in message.logprobs:
            if subscription := self._live.get(token.id):
                subscription.add_logprobs(token.logprobs)
        for prompt in message.prompt_logprobs:
            if subscription := self._live.get(prompt.id):
                subscription.add_prompt_logprobs(prompt.start, prompt.positions)
        for finished in message.finished:
            if subscription := self._live.pop(finished.id, None):
                subscription.finish(finished)
        for refused in message.refused:
            if subscription := self._live.pop(refused.id, None):
                subscription.fail(_refusal(refused))

    def end_overdue(self, now: float) -> None:
        """Ends those of which no scheduler is needed to know that they are over."""
        for subscription in self:
            if finished := subscription.overdue(now):
                del self._live[subscription.id]
                subscription.finish(finished)

    def lost(self) -> None:
        """They have no scheduler any more."""
        for subscription in self._live.values():
            subscription.lost()

    def fail(self, subscription: Subscription, error: BatchyardError) -> None:
        """Ends a live request with `error`."""
        del self._live[subscription.id]
        subscription.fail(error)

    def _deal_tokens(self, message: SchedulerMessage) -> None:
        ids = unpack_u64(message.ids).tolist()
        counts = unpack_i32(message.counts).tolist()
        tokens = unpack_i32(message.tokens).tolist()
        if sum(counts) != len(tokens) or len(ids) != len(counts):
            raise ValueError(f"{len(tokens)} tokens of {len(ids)} requests with counts {counts}")
        end = 0
        for submit_id, count in zip(ids, counts, strict=True):
            start, end = end, end + count
            if subscription := self._live.get(submit_id):
                subscription.add_tokens(tokens[start:end])


def _refusal(refused: Refused) -> BatchyardError:
    if refused.reason == REFUSAL_REASON_INVALID:
        return InvalidRequest(refused.message)
    retry_after_s = refused.retry_after_ms / 1000
    if refused.reason == REFUSAL_REASON_OVER_SHARE:
        return Overloaded(refused.message, retry_after_s)
    if refused.reason == REFUSAL_REASON_OVERLOADED:
        return ServerFull(refused.message, retry_after_s)
    return SchedulerLost(refused.message)
