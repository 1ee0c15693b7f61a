"""The mixed requests, always the same ones, and what makes two answers equal."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from protos.inference_pb2 import GenerateRequest, GenerateResponse, TokenIds, TokenLogprob, Usage

_LEAST_TOKENS, _MOST_TOKENS = 60, 140  # of an answer
_LOGPROB_TOLERANCE = 2e-3  # a prompt that is read again is read in other chunks: float32 rounds otherwise
_STOP_CHARS = 10


@dataclass(slots=True)
class Choice:
    """One answer to a question."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: str = ""


@dataclass(slots=True)
class Answer:
    """All choices, by index."""

    choices: dict[int, Choice] = field(default_factory=dict)
    usage: Usage | None = None

    def add(self, piece: GenerateResponse) -> None:
        """Adds a piece of the stream."""
        choice = self.choices.setdefault(piece.index, Choice())
        choice.tokens += piece.token_ids
        choice.text += piece.text
        choice.logprobs += piece.logprobs
        choice.finish = piece.finish_reason or choice.finish
        if piece.HasField("usage"):
            self.usage = piece.usage


@dataclass(frozen=True, slots=True)
class Question:
    """A request, and what kind it is of."""

    kind: str
    request: GenerateRequest


def questions(prompts: Sequence[Sequence[int]], model: str) -> list[Question]:
    """One for each prompt, the kinds in turn. Answers are of 60 to 140 tokens, unless a string stops them."""
    made = []
    for number, prompt in enumerate(prompts):
        kind = list(_KINDS)[number % len(_KINDS)]
        request = GenerateRequest(
            model=model,
            token_ids=TokenIds(ids=prompt),
            max_tokens=_LEAST_TOKENS + 37 * number % (_MOST_TOKENS - _LEAST_TOKENS),
            seed=number,
            ignore_eos=True,
        )
        _KINDS[kind](request)
        made.append(Question(kind, request))
    return made


def stopped(question: Question, calm: Answer) -> Question:
    """Of the kind `stop`: one that a string ends at about two thirds of `calm`, its answer without one."""
    text = calm.choices[0].text
    for start in range(2 * len(text) // 3, len(text) - _STOP_CHARS):
        stop = text[start : start + _STOP_CHARS]
        if stop.strip() and text.find(stop) == start:
            request = GenerateRequest()
            request.CopyFrom(question.request)
            request.stop.append(stop)
            return Question(question.kind, request)
    return question


def differences(got: Answer, wanted: Answer) -> Iterator[str]:
    """In what they differ, in words. How much of the prompt was found in a cache may differ."""
    if set(got.choices) != set(wanted.choices):
        yield f"choices {sorted(got.choices)}, not {sorted(wanted.choices)}"
        return
    for index, choice in got.choices.items():
        for what in _choice_differences(choice, wanted.choices[index]):
            yield f"choice {index}: {what}"
    if _counts(got.usage) != _counts(wanted.usage):
        yield f"usage {_counts(got.usage)}, not {_counts(wanted.usage)}"


def _choice_differences(got: Choice, wanted: Choice) -> Iterator[str]:
    if got.tokens != wanted.tokens:
        pairs = zip(got.tokens, wanted.tokens, strict=False)
        at = next((n for n, (one, other) in enumerate(pairs) if one != other), None)
        where = f"from token {at} on" if at is not None else "in length"
        yield f"{len(got.tokens)} tokens, not {len(wanted.tokens)}; other {where}"
    elif len(got.logprobs) != len(wanted.logprobs):
        yield f"{len(got.logprobs)} log-probabilities, not {len(wanted.logprobs)}"
    elif not all(map(_close, got.logprobs, wanted.logprobs)):
        yield "other log-probabilities"
    if got.text != wanted.text:
        yield "other text"
    if got.finish != wanted.finish:
        yield f"ended by {got.finish!r}, not {wanted.finish!r}"


def _close(one: TokenLogprob, other: TokenLogprob) -> bool:
    """Alternatives are compared by their values: of two that are as likely, either may be named first."""

    def values(entry: TokenLogprob) -> list[float]:
        return [entry.logprob, *(alternative.logprob for alternative in entry.top)]

    pairs = zip(values(one), values(other), strict=False)
    return (one.token_id, len(one.top)) == (other.token_id, len(other.top)) and all(
        math.isclose(a, b, abs_tol=_LOGPROB_TOLERANCE) for a, b in pairs
    )


def _counts(usage: Usage | None) -> tuple[int, int] | None:
    return (usage.prompt_tokens, usage.completion_tokens) if usage else None


def _greedy(request: GenerateRequest) -> None:
    request.temperature = 0


def _sampled(request: GenerateRequest) -> None:
    request.temperature, request.top_p, request.top_k = 0.9, 0.95, 50


def _penalized(request: GenerateRequest) -> None:
    request.temperature, request.min_p = 0.8, 0.02
    request.repetition_penalty, request.presence_penalty, request.frequency_penalty = 1.1, 0.4, 0.3


def _scored(request: GenerateRequest) -> None:
    request.temperature, request.logprobs = 0.7, 4


def _two(request: GenerateRequest) -> None:
    request.temperature, request.n = 0.9, 2


# `stop` gets its string when its answer is known: see `stopped`.
_KINDS: Mapping[str, Callable[[GenerateRequest], None]] = {
    "greedy": _greedy,
    "sampled": _sampled,
    "penalties": _penalized,
    "stop": _sampled,
    "logprobs": _scored,
    "n=2": _two,
}
