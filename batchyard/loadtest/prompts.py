"""Random prompts: token ids, or words for servers that take text only."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from batchyard.errors import ConfigError

Symbols = npt.NDArray[np.int64]

# Common words: with the space before it, each is one token in the vocabularies that are in use.
_COMMON = """
the of and to in is was for that on as with he be at by it had not are but from or have an they which one
you were all her she there would their we him been has when who will no more if out so said what up its
about into than them can only other new some could time these two may then do first any my now such like
our over man me even most made after also did many before must through back years where much your way well
down should because each just those people how too little state good very make world still own see men
work long here get both between life being under never day same another know while last might us great old
year off come since against go came right used take three states himself few house use during without
again place around however home small found thought went say part once general high upon school every does
got united left number course war until always away something fact though water less public put think
almost hand enough far took head yet government system better set told nothing night end why called find
going look asked later knew point next city business case group give days young let room word present
given early order second social side several face national possible rather among form often things large
four within looking church power white kind important example children help want light need open
"""
WORDS = tuple(_COMMON.split())

DEFAULT_IDS = (1000, 5000)
"""In every vocabulary that is in use, and no special tokens of it."""


class Alphabet(Protocol):
    """What prompts are made of."""

    def draw(self, rng: np.random.Generator, count: int) -> Symbols:
        """`count` symbols, `[count]`."""
        ...

    def content(self, symbols: Symbols) -> Sequence[int] | str:
        """What is sent for them."""
        ...


@dataclass(frozen=True, slots=True)
class TokenIds:
    """Token ids from `low` up to, and without, `high`: lengths are exact."""

    low: int
    high: int

    def draw(self, rng: np.random.Generator, count: int) -> Symbols:
        """`count` ids."""
        return rng.integers(self.low, self.high, count)

    def content(self, symbols: Symbols) -> list[int]:
        """The ids."""
        ids: list[int] = symbols.tolist()
        return ids


class Words:
    """As many words as tokens are wanted: nearly right; what is reported is the server's count."""

    def draw(self, rng: np.random.Generator, count: int) -> Symbols:
        """Indexes of `count` words."""
        return rng.integers(0, len(WORDS), count)

    def content(self, symbols: Symbols) -> str:
        """The words in a row."""
        return " ".join(WORDS[index] for index in symbols)


def parse_ids(text: str) -> TokenIds:
    """`1000:5000`. Raises ConfigError."""
    low, _, high = text.partition(":")
    if not (low.isdigit() and high.isdigit() and int(low) < int(high)):
        raise ConfigError(
            f"--token-ids {text}: should be like 1000:5000, the lowest and the one after the highest"
        )
    return TokenIds(int(low), int(high))
