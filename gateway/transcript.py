"""One answer as it grows: from its tokens to text, log-probabilities, and why it ended."""

from collections.abc import Sequence

from batchyard.errors import ProtocolError
from gateway.detokenizing import Detokenizer
from gateway.stopping import StopStrings
from gateway.subscription import Update
from gateway.tokenizing import Tokenizer
from gateway.types import Candidate, FinishReason, GenerationRequest, Piece, TokenLogprob
from protos.packing import unpack_f32, unpack_i32
from protos.sampling_pb2 import Logprobs
from protos.scheduling_pb2 import (
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    FINISH_REASON_TIMEOUT,
    Finished,
    Timing,
)


class Transcript:
    """Tells what is new, update by update, until a piece has a finish reason. The rules are vLLM's:

    - The text ends before a stop token, and before a stop string, unless `include_stop_str_in_output`.
    - The token ids end with the stop token, or with the token that completed the stop string.
    - A stop string must end after the first `min_tokens` tokens.
    """

    def __init__(self, tokenizer: Tokenizer, request: GenerationRequest) -> None:
        self._tokenizer = tokenizer
        self._prompt_ids = request.prompt_ids
        self._params = request.params
        self._detokenizer = Detokenizer(tokenizer, request.prompt_ids, self._params.skip_special_tokens)
        self._stops = StopStrings(self._params.stop, self._params.include_stop_str_in_output)
        self._num_tokens = 0
        self._num_characters = 0  # detokenized, the held back ones too
        self._cached_tokens = 0  # not told yet
        self._timing: Timing | None = None  # likewise
        self._away: list[tuple[int, int]] = []  # likewise
        self._prompt_logprobs: list[Logprobs] | None = None if self._params.prompt_logprobs is None else []

    def add(self, update: Update) -> Piece | None:
        """The piece of `update`; None while there is nothing to tell. Not to be called after the last piece.

        Raises ProtocolError where the log-probabilities do not fit the tokens.
        """
        if self._prompt_logprobs is not None:
            self._prompt_logprobs += update.prompt_logprobs
        self._cached_tokens += update.cached_tokens
        self._timing = update.timing or self._timing
        self._away += update.away
        finished = update.finished
        if not update.token_ids and finished is None:
            return None
        text, offsets, stop = self._read(update)
        token_ids = update.token_ids[: len(offsets)]
        if stop is None and finished is not None:
            rest, stop = self._flush()
            text += rest
        finish_reason, stop_reason = self._end(stop, finished)
        return Piece(
            text=text,
            token_ids=tuple(token_ids),
            logprobs=self._logprobs(update, offsets),
            prompt_logprobs=self._take_prompt_logprobs(finished),
            finish_reason=finish_reason,
            stop_reason=stop_reason,
            cached_tokens=self._take_cached_tokens(),
            timing=self._take_timing(),
            away=self._take_away(),
        )

    def _read(self, update: Update) -> tuple[str, list[int], str | None]:
        """Reads tokens up to a stop string: text to show, where each token read begins, the stop string."""
        texts: list[str] = []
        offsets: list[int] = []
        silent_at = self._stop_token_at(update)
        for at, token_id in enumerate(update.token_ids):
            offsets.append(self._num_characters)
            text = "" if at == silent_at else self._detokenizer.add((token_id,))
            self._num_tokens += 1
            self._num_characters += len(text)
            shown, stop = self._stops.add(text, armed=self._num_tokens > self._params.min_tokens)
            texts.append(shown)
            if stop is not None:
                return "".join(texts), offsets, stop
        return "".join(texts), offsets, None

    def _stop_token_at(self, update: Update) -> int | None:
        """The index of the token that ends the answer and has no part in its text."""
        finished = update.finished
        if finished is None or finished.reason != FINISH_REASON_STOP:
            return None
        return None if self._params.include_stop_str_in_output else len(update.token_ids) - 1

    def _flush(self) -> tuple[str, str | None]:
        shown, stop = self._stops.add(
            self._detokenizer.flush(), armed=self._num_tokens > self._params.min_tokens
        )
        return (shown, stop) if stop is not None else (shown + self._stops.flush(), None)

    def _end(
        self, stop: str | None, finished: Finished | None
    ) -> tuple[FinishReason | None, int | str | None]:
        if stop is not None:
            return "stop", stop
        if finished is None:
            return None, None
        if finished.reason == FINISH_REASON_LENGTH:
            return "length", None
        if finished.reason == FINISH_REASON_TIMEOUT:
            # OpenAI has no word for it, and clients know only OpenAI's: cut short, and here is why.
            return "length", "timeout"
        if finished.reason != FINISH_REASON_STOP:
            raise ProtocolError(f"a request ended for an unknown reason: {finished.reason}")
        named = finished.stop_token in self._params.stop_token_ids
        return "stop", finished.stop_token if named else None

    def _logprobs(self, update: Update, offsets: Sequence[int]) -> tuple[TokenLogprob, ...]:
        if self._params.logprobs is None:
            return ()
        if len(update.logprobs) != len(update.token_ids):
            raise ProtocolError(
                f"{len(update.token_ids)} tokens came with {len(update.logprobs)} log-probabilities"
            )
        read = zip(update.token_ids, update.logprobs, offsets, strict=False)
        return tuple(self._token_logprob(*each) for each in read)

    def _take_cached_tokens(self) -> int:
        taken, self._cached_tokens = self._cached_tokens, 0
        return taken

    def _take_timing(self) -> Timing | None:
        taken, self._timing = self._timing, None
        return taken

    def _take_away(self) -> tuple[tuple[int, int], ...]:
        taken, self._away = tuple(self._away), []
        return taken

    def _take_prompt_logprobs(self, finished: Finished | None) -> tuple[TokenLogprob | None, ...]:
        logprobs, self._prompt_logprobs = self._prompt_logprobs, None
        if logprobs is None or (finished and finished.reason == FINISH_REASON_TIMEOUT):
            return ()  # its time may have been up before the prompt was read
        if len(logprobs) != len(self._prompt_ids) - 1:
            raise ProtocolError(
                f"{len(self._prompt_ids)} prompt tokens came with {len(logprobs)} log-probabilities"
            )
        detokenizer = Detokenizer(self._tokenizer, (), self._params.skip_special_tokens)
        told: list[TokenLogprob | None] = [None]  # nothing comes before the first token
        offset = len(detokenizer.add(self._prompt_ids[:1]))
        for token_id, its_logprobs in zip(self._prompt_ids[1:], logprobs, strict=True):
            told.append(self._token_logprob(token_id, its_logprobs, offset))
            offset += len(detokenizer.add((token_id,)))
        return tuple(told)

    def _token_logprob(self, token_id: int, logprobs: Logprobs, offset: int) -> TokenLogprob:
        top_ids = unpack_i32(logprobs.top_ids).tolist()
        top_values = unpack_f32(logprobs.top_logprobs).tolist()
        top = [self._candidate(*each) for each in zip(top_ids, top_values, strict=True)]
        return TokenLogprob(self._candidate(token_id, logprobs.logprob), tuple(top), offset)

    def _candidate(self, token_id: int, logprob: float) -> Candidate:
        text, data = self._tokenizer.token_text(token_id), self._tokenizer.token_bytes(token_id)
        return Candidate(token_id, text, data, logprob)
