"""What the sampling rows of one step ask for: only the rows that ask, and only what they ask.

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
class MinP(Generic[A]):
    """Rows with min_p among those that sample at random. index [m] int64; log_min_p [m] float32."""

    index: A
    log_min_p: A

    def map(self, move: Callable[[A], B]) -> "MinP[B]":
        """The same with every array moved."""
        return MinP(move(self.index), move(self.log_min_p))


@dataclass(frozen=True, slots=True)
class TopKP(Generic[A]):
    """Rows with top_k, top_p or both among those that sample at random.

    index [f] int64; top_p [f] float32. top_k [f] int64 in 1..max_top_k, or None where these rows have none.
    """

    index: A
    top_p: A
    top_k: A | None
    max_top_k: int

    def map(self, move: Callable[[A], B]) -> "TopKP[B]":
        """The same with every array moved."""
        top_k = None if self.top_k is None else move(self.top_k)
        return TopKP(move(self.index), move(self.top_p), top_k, self.max_top_k)


@dataclass(frozen=True, slots=True)
class Random(Generic[A]):
    """Rows that sample at random, r of them.

    index [r] int64 or None; temperature [r] float32; keys [r] int64, see `rng.stream_keys`. Rows with top_k
    are apart from those with top_p alone, for these need a sort.
    """

    index: A | None
    temperature: A
    keys: A
    min_p: MinP[A] | None
    top_k: TopKP[A] | None
    top_p: TopKP[A] | None

    def map(self, move: Callable[[A], B]) -> "Random[B]":
        """The same with every array moved."""
        return Random(
            None if self.index is None else move(self.index),
            move(self.temperature),
            move(self.keys),
            None if self.min_p is None else self.min_p.map(move),
            None if self.top_k is None else self.top_k.map(move),
            None if self.top_p is None else self.top_p.map(move),
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

    banned [n] int64: places in the flattened logits that must not be sampled.
    """

    bias: Bias[A] | None = None
    banned: A | None = None
    penalties: Penalties[A] | None = None
    random: Random[A] | None = None
    logprobs: LogprobRows[A] | None = None

    def map(self, move: Callable[[A], B]) -> "SamplingBatch[B]":
        """The same with every array moved."""
        return SamplingBatch(
            None if self.bias is None else self.bias.map(move),
            None if self.banned is None else move(self.banned),
            None if self.penalties is None else self.penalties.map(move),
            None if self.random is None else self.random.map(move),
            None if self.logprobs is None else self.logprobs.map(move),
        )
