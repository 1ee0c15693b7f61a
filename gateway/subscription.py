"""The receiving end of a request: what the scheduler says of it, merged until its reader comes for it.

It outlives the scheduler. It knows the request and all of the answer so far, which is all that another
scheduler needs to go on with it; its reader sees a pause.
"""

import asyncio
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from batchyard.errors import BatchyardError, RequestFailed
from protos.packing import pack_i32, unpack_i32
from protos.sampling_pb2 import Logprobs
from protos.scheduling_pb2 import (
    FINISH_REASON_FAILED,
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    FINISH_REASON_TIMEOUT,
    Finished,
    Submit,
    Timing,
)


@dataclass(slots=True)
class Update:
    """What is new of one request since the last update."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[Logprobs] = field(default_factory=list)  # one per token, if asked for
    prompt_logprobs: list[Logprobs] = field(default_factory=list)  # of prompt tokens from the second on
    cached_tokens: int = 0  # of the prompt, in one of the updates up to the first with tokens
    finished: Finished | None = None  # in the last update
    timing: Timing | None = None  # when it began, and when it had finished
    away: list[tuple[int, int]] = field(default_factory=list)  # times (Unix, ns) without a scheduler


class Subscription:
    """Iterates over the updates of one request; closing it before its end cancels the request.

    A reader that falls behind finds all it missed in one update. The iteration ends after the update that has
    `finished`, or else with the error that ended the request, after what came before the error.
    """

    def __init__(self, submit: Submit, on_close: Callable[[int], None], now: float) -> None:
        """`on_close` is called with the id of `submit`, once, when the reader is done with the request.

        `now`, in seconds, is when the time that `submit` has begins.
        """
        self.id = submit.id
        self.began = now
        self._submit = submit
        self._prompt = submit.tokens
        self._answered = array("i")
        self._deadline = now + submit.timeout_ms / 1000 if submit.timeout_ms else None
        self._submitted = False
        self._lost_ns: int | None = None  # since when it has no scheduler
        self._away: list[tuple[int, int]] = []  # as in an update: it is no news by itself
        self._started = False
        self._on_close = on_close
        self._pending = Update()
        self._next_scored = 1  # prompt position whose log-probability comes next
        self._error: BatchyardError | None = None
        self._news = asyncio.Event()  # set while there is something to read
        self._closed = False

    # For the reader

    def close(self) -> None:
        """Ends the iteration, and the request if it still runs. Does nothing the second time."""
        if not self._closed:
            self._closed = True
            self._news.set()
            self._on_close(self.id)

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

    # For whoever submits it

    def to_submit(self, now: float) -> Submit:
        """The request as a scheduler is to be told of it now: the answer so far follows the prompt."""
        submit = self._submit
        if self._answered:
            submit.tokens = self._prompt + pack_i32(self._answered)
            # The prompt has been scored, or there would be no answer: it may come from the cache.
            submit.sampling.ClearField("prompt_logprobs")
        if self._deadline is not None:
            submit.timeout_ms = max(1, round((self._deadline - now) * 1000))
        self._note_away()
        submit.accepted = self._submitted
        self._submitted = True
        return submit

    def lost(self) -> None:
        """The scheduler that it was submitted to is gone, or there is none to submit it to."""
        if self._lost_ns is None:
            self._lost_ns = time.time_ns()

    def _note_away(self) -> None:
        if self._lost_ns is not None:
            self._away.append((self._lost_ns, time.time_ns()))
            self._lost_ns = None

    def overdue(self, now: float) -> Finished | None:
        """How the request has ended, where no scheduler is left to say so; None where it has not."""
        answered, submit = self._answered, self._submit
        if answered and answered[-1] in unpack_i32(submit.sampling.stop_token_ids):
            return Finished(id=self.id, reason=FINISH_REASON_STOP, stop_token=answered[-1])
        if answered and len(answered) >= submit.max_tokens:
            return Finished(id=self.id, reason=FINISH_REASON_LENGTH, stop_token=-1)
        if self._deadline is not None and now >= self._deadline:
            return Finished(id=self.id, reason=FINISH_REASON_TIMEOUT, stop_token=-1)
        return None

    # For whoever brings the news

    def add_tokens(self, token_ids: Sequence[int]) -> None:
        """The answer goes on with `token_ids`."""
        self._answered.extend(token_ids)
        self._wake().token_ids += token_ids

    def add_logprobs(self, logprobs: Logprobs) -> None:
        """Of the next token."""
        self._wake().logprobs.append(logprobs)

    def add_prompt_logprobs(self, start: int, positions: Sequence[Logprobs]) -> None:
        """Adds those of the prompt tokens from position `start` on, but for what came before: a request that
        lost its row reads its prompt again.

        Raises ValueError where some are missing.
        """
        if start > self._next_scored:
            raise ValueError(f"log-probabilities of the prompt jump from {self._next_scored} to {start}")
        new = positions[self._next_scored - start :]
        self._next_scored += len(new)
        self._wake().prompt_logprobs.extend(new)

    def start(self, cached_tokens: int, timing: Timing) -> None:
        """The request runs. What another scheduler finds in its cache later is not the client's gain."""
        if not self._started:
            self._started = True
            update = self._wake()
            update.cached_tokens = cached_tokens
            update.timing = timing

    def finish(self, finished: Finished) -> None:
        """The request is over."""
        if finished.reason == FINISH_REASON_FAILED:
            self.fail(RequestFailed(finished.error))
        else:
            update = self._wake()
            update.finished = finished
            if finished.HasField("timing"):  # else no scheduler had it at the end
                update.timing = finished.timing

    def fail(self, error: BatchyardError) -> None:
        """Ends the request with `error`, which the reader gets after what it has not read yet."""
        self._error = error
        self._news.set()

    def _wake(self) -> Update:
        self._news.set()
        if self._away:
            self._pending.away += self._away
            self._away.clear()
        return self._pending
