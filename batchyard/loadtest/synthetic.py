"""Synthetic workloads: random prompts of given lengths, with shared beginnings, or in conversations."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from batchyard.loadtest.lengths import Lengths
from batchyard.loadtest.prompts import Alphabet, Symbols, Words
from batchyard.loadtest.sessions import Session, Turn

_STRANGE = 0x57A6  # another stream of random numbers than the workload's own


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """What a `share` of the prompts begin with: one of `count` beginnings of so many tokens."""

    tokens: int
    count: int = 1
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Synthetic:
    """Requests on their own. The shared beginning comes on top of the prompt's own length."""

    alphabet: Alphabet
    input: Lengths
    output: Lengths
    prefix: SharedPrefix | None = None
    chat: bool = False
    size: None = None
    timed: bool = False

    def sessions(self, count: int, seed: int) -> Iterator[Session]:
        """`count` requests."""
        rng = np.random.default_rng(seed)
        inputs, outputs = self.input.draw(rng, count), self.output.draw(rng, count)
        prefixes = self._prefixes(rng, count)
        for own, max_tokens, prefix in zip(inputs, outputs, prefixes, strict=True):
            symbols = np.concatenate([prefix, self.alphabet.draw(rng, own)])
            content = self.alphabet.content(symbols)
            yield Session([{"role": "user", "content": content}] if self.chat else content, max_tokens)

    def strangers(self, count: int, seed: int) -> Iterator[Session]:
        """The same with other random numbers, prefixes included."""
        return self.sessions(count, seed ^ _STRANGE)

    def _prefixes(self, rng: np.random.Generator, count: int) -> Iterator[Symbols]:
        nothing = np.empty(0, np.int64)
        if self.prefix is None:
            yield from (nothing for _ in range(count))
            return
        shared = [self.alphabet.draw(rng, self.prefix.tokens) for _ in range(self.prefix.count)]
        which = rng.integers(0, len(shared), count)
        has = rng.random(count) < self.prefix.share
        yield from (shared[n] if yes else nothing for n, yes in zip(which, has, strict=True))


@dataclass(frozen=True, slots=True)
class Conversations:
    """Chats of several turns: each request is all that was said before, with the server's own answers.

    A system prompt of `system_tokens` words is shared by all. Between an answer and the next turn the user
    thinks for an exponentially distributed time of `think_s` seconds on average.
    """

    turns: Lengths
    input: Lengths
    output: Lengths
    system_tokens: int = 0
    think_s: float = 0.0
    size: None = None
    timed: bool = False

    def sessions(self, count: int, seed: int) -> Iterator[Session]:
        """`count` conversations."""
        rng = np.random.default_rng(seed)
        words = Words()
        system = words.content(words.draw(rng, self.system_tokens))
        head = [{"role": "system", "content": system}] if system else []
        for turns in self.turns.draw(rng, count):
            said = [words.content(words.draw(rng, n)) for n in self.input.draw(rng, turns)]
            tokens = self.output.draw(rng, turns)
            thought = rng.exponential(self.think_s, turns) if self.think_s else np.zeros(turns)
            later = tuple(
                Turn(text, n, float(think)) for text, n, think in zip(said, tokens, thought, strict=True)
            )
            yield Session([*head, {"role": "user", "content": said[0]}], tokens[0], later[1:])

    def strangers(self, count: int, seed: int) -> Iterator[Session]:
        """First turns of other conversations."""
        return (replace(session, turns=()) for session in self.sessions(count, seed ^ _STRANGE))
