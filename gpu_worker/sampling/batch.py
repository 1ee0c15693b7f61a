"""What the sampling rows of one step ask for.

The same structures hold NumPy arrays on the host and tensors on the device; `map` leads from one to the
other. An `index` selects among the rows that sample in the step; where it is None, all of them are meant.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True, slots=True)
class Bias(Generic[A]):
    """`values` [n] float32 to add to the logits at `places` [n] int64, in the flattened [rows, vocab]."""

    places: A
    values: A

    def map(self, move: Callable[[A], B]) -> "Bias[B]":
        """The same with every array moved."""
        return Bias(move(self.places), move(self.values))


@dataclass(frozen=True, slots=True)
class Penalties(Generic[A]):
    """Rows with penalties, p of them.

    index [p] int64; rows [p] int64: where their tokens stand in the token table; prompt_lens, known [p]
    int64: the prompt is tokens[:prompt_len], the answer so far tokens[prompt_len:known]; repetition,
    presence, frequency [p] float32. width: the largest `known`.
    """

    index: A
    rows: A
    prompt_lens: A
    known: A
    repetition: A
    presence: A
    frequency: A
    width: int

    def map(self, move: Callable[[A], B]) -> "Penalties[B]":
        """The same with every array moved."""
        return Penalties(
            move(self.index),
            move(self.rows),
            move(self.prompt_lens),
            move(self.known),
            move(self.repetition),
            move(self.presence),
            move(self.frequency),
            self.width,
        )


@dataclass(frozen=True, slots=True)
class Picks(Generic[A]):
    """How each of the n rows picks its token.

    temperature [n] float32, 0 is greedy; keys [n] int64, see `rng.stream_keys`; log_min_p [n] float32, -inf
    for none; top_k [n] int32, 0 for none; top_p [n] float32, 1 for none. Greedy rows have no filters.
    filtered: whether any row has one.
    """

    temperature: A
    keys: A
    log_min_p: A
    top_k: A
    top_p: A
    filtered: bool

    def map(self, move: Callable[[A], B]) -> "Picks[B]":
        """The same with every array moved."""
        return Picks(
            move(self.temperature),
            move(self.keys),
            move(self.log_min_p),
            move(self.top_k),
            move(self.top_p),
            self.filtered,
        )


@dataclass(frozen=True, slots=True)
class LogprobRows(Generic[A]):
    """Rows that want log-probabilities. index [l] int64; max_top: the most alternatives any of them wants."""

    index: A
    max_top: int

    def map(self, move: Callable[[A], B]) -> "LogprobRows[B]":
        """The same with every array moved."""
        return LogprobRows(move(self.index), self.max_top)


@dataclass(frozen=True, slots=True)
class SamplingBatch(Generic[A]):
    """All that the sampler is told besides the logits; None where no row asks.

    banned [n] int64: places in the flattened logits that must not be sampled. picks: None where all rows are
    greedy.
    """

    bias: Bias[A] | None = None
    banned: A | None = None
    penalties: Penalties[A] | None = None
    picks: Picks[A] | None = None
    logprobs: LogprobRows[A] | None = None

    @property
    def adjusts(self) -> bool:
        """Whether logits change before tokens are picked."""
        return not (self.bias is None and self.banned is None and self.penalties is None)

    def map(self, move: Callable[[A], B]) -> "SamplingBatch[B]":
        """The same with every array moved."""
        return SamplingBatch(
            None if self.bias is None else self.bias.map(move),
            None if self.banned is None else move(self.banned),
            None if self.penalties is None else self.penalties.map(move),
            None if self.picks is None else self.picks.map(move),
            None if self.logprobs is None else self.logprobs.map(move),
        )
