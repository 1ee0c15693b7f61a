"""Takes a worker's answer to a step: tokens into rows and to gateways, stops, finished requests.

An answer is believed whole or not at all: one that makes no sense changes nothing, and costs the worker its
stream. What it says of one row may well be true, but nobody knows of which.
"""

import math

import numpy as np
import numpy.typing as npt

from batchyard.errors import NanLogits, ProtocolError
from protos.packing import unpack_i32
from protos.sampling_pb2 import Logprobs
from protos.scheduling_pb2 import FINISH_REASON_LENGTH, FINISH_REASON_STOP
from protos.step_pb2 import StepResult
from scheduler.batcher import Batcher, Step
from scheduler.request import Tokens
from scheduler.request_times import RequestTimes
from scheduler.session import Sessions


class ResultHandler:
    """Applies results in step order. A steady step costs array operations only."""

    def __init__(self, batcher: Batcher, sessions: Sessions, vocab_size: int, times: RequestTimes) -> None:
        self._batcher = batcher
        self._rows = batcher.rows
        self._sessions = sessions
        self._vocab_size = vocab_size
        self._times = times

    def apply(self, step: Step, result: StepResult) -> int:
        """Takes the answer to `step`; returns how many tokens were delivered.

        Raises ProtocolError, and changes nothing, when the answer makes no sense; NanLogits where the worker
        says so itself.
        """
        rows, tokens = _unpack(result)
        self._check(step, result, rows, tokens)
        if result.logprobs or result.prompt_logprobs:
            _check_logprobs(step, result)
        wanted = self._rows.accepting[rows]
        self._deliver_logprobs(result)
        for row in step.read:
            self._begin_answer(row)
        rows, tokens = rows[wanted], tokens[wanted]
        if len(rows):
            self._deliver(rows, tokens)
        return len(rows)

    def _check(self, step: Step, result: StepResult, rows: Tokens, tokens: Tokens) -> None:
        if result.step != step.batch.step:
            raise ProtocolError(f"answer to step {result.step}, expected one to {step.batch.step}")
        if len(rows) != len(tokens) or not np.array_equal(np.sort(rows), np.sort(step.sampling)):
            raise ProtocolError(
                f"step {result.step} sampled rows {rows.tolist()}, not {step.sampling.tolist()}"
            )
        if result.num_tokens != step.num_tokens:
            raise ProtocolError(
                f"step {result.step} computed {result.num_tokens} tokens, not {step.num_tokens}"
            )
        if len(tokens) and (tokens.min() < 0 or tokens.max() >= self._vocab_size):
            if len(nan := rows[tokens == -1].tolist()):
                raise NanLogits(f"step {result.step}: the logits of rows {nan} are no numbers", nan)
            raise ProtocolError(f"step {result.step} sampled a token outside the vocabulary")

    def _begin_answer(self, row: int) -> None:
        """The prompt in `row` has been read: the first token of this row is here."""
        request = self._rows.requests[row]
        if request is None or not self._rows.accepting[row]:
            return
        request.timeline.first_token()
        self._times.sampled(request)
        if self._rows.length[row] == request.prompt_len:  # else it has begun in another row
            request.session.started(request)

    def _deliver(self, rows: Tokens, tokens: Tokens) -> None:
        state = self._rows
        state.tokens[rows, state.length[rows]] = tokens
        state.length[rows] += 1
        self._batcher.sharing.register_full(rows.tolist(), self._batcher.sent)
        self._sessions.tokens(state.sessions[rows], state.ids[rows], tokens)
        stopped = (state.stops[rows] == tokens[:, None]).any(axis=1)
        over = stopped | (state.length[rows] >= state.limit[rows])
        if over.any():
            self._finish(rows[over], tokens[over], stopped[over])

    def _finish(self, rows: Tokens, tokens: Tokens, stopped: npt.NDArray[np.bool_]) -> None:
        for row, token, stop in zip(rows.tolist(), tokens.tolist(), stopped.tolist(), strict=True):
            request = self._rows.requests[row]
            if request is None:
                raise AssertionError(f"row {row} is vacant")
            self._batcher.end(row)
            self._times.finished(request)
            if request.max_tokens > 1:  # else it was no answer: a score, or a prompt to be warmed
                self._batcher.answers.observe(int(self._rows.length[row]) - request.prompt_len)
            if stop:
                request.session.finished(request, FINISH_REASON_STOP, stop_token=token)
            else:
                request.session.finished(request, FINISH_REASON_LENGTH)

    def _deliver_logprobs(self, result: StepResult) -> None:
        for part in result.prompt_logprobs:
            request = self._rows.requests[part.row]
            if request and self._rows.accepting[part.row]:
                request.session.prompt_logprobs(request, part.start, list(part.positions))
        for item in result.logprobs:
            request = self._rows.requests[item.row]
            if request and self._rows.accepting[item.row]:
                request.session.logprobs(request, item.logprobs)


def _unpack(result: StepResult) -> tuple[Tokens, Tokens]:
    try:
        return unpack_i32(result.rows), unpack_i32(result.tokens)
    except ValueError as error:
        raise ProtocolError(f"step {result.step}: {error}") from error


def _check_logprobs(step: Step, result: StepResult) -> None:
    """That they are of rows which took part, and numbers: clients get them as they are."""
    sampled, prompts = set(step.sampling.tolist()), set(unpack_i32(step.batch.chunk_rows).tolist())
    for item in result.logprobs:
        if item.row not in sampled or _is_nan(item.logprobs):
            raise ProtocolError(f"step {step.batch.step}: log-probabilities of row {item.row} make no sense")
    for part in result.prompt_logprobs:
        if part.row not in prompts or any(map(_is_nan, part.positions)):
            raise ProtocolError(
                f"step {step.batch.step}: those of the prompt of row {part.row} make no sense"
            )


def _is_nan(logprobs: Logprobs) -> bool:
    return math.isnan(logprobs.logprob)
