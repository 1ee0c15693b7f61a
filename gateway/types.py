"""What the two API surfaces (REST and gRPC) hand to the generator, and what they get back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from gateway.keys.records import ANYBODY, Tenant
from protos.scheduling_pb2 import Timing


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to pick tokens and when to stop. Values are checked before they come here."""

    max_tokens: int | None = None  # None: what the context has left
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0 is off
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None  # None: drawn at random
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None  # so many alternatives besides the sampled token
    prompt_logprobs: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Terms:
    """On which terms a request is served."""

    tenant: Tenant = ANYBODY
    priority: int = 0  # lower is more urgent
    deadline: float | None = None  # seconds, by time.perf_counter, when the whole answer must be there
    cache_salt: str = ""  # the request's own


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One answer to one prompt. `n` answers are n requests whose seeds differ."""

    request_id: str
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    traceparent: str = ""
    terms: Terms = Terms()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token with its log-probability. `text` may be a replacement character where `data` is part of one."""

    token_id: int
    text: str
    data: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The token that stands at a position, and the likeliest ones there, best first.

    `text_offset` is where the token's text begins in the answer, in characters.
    """

    token: Candidate
    top: tuple[Candidate, ...]
    text_offset: int


FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Piece:
    """What is new in one answer. Pieces join to the whole; the last one has a finish reason.

    A piece may have tokens and no text (half a character; text held back because it may begin a stop string)
    or text and no tokens (what was held back, at the end).
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()  # in the first piece, one per prompt token
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None  # the stop token or string, when the request named it
    cached_tokens: int = 0  # of the prompt, in the first piece
    away: tuple[tuple[int, int], ...] = ()  # times (Unix, ns) in which the request had no scheduler
    timing: Timing | None = None  # of the scheduler so far, in the first piece and in the last
