"""How long prompts and answers are: numbers of tokens, drawn from a distribution that is written in a word.

512                          always
100-1024                     uniform, both ends included
normal:512:100               mean and standard deviation
lognormal:220:1.0            mean, and sigma of the logarithm
lognormal:220:1.0:8:4096     within 8 and 4096; so may normal
"""

import math
import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

from batchyard.errors import ConfigError

_UNBOUNDED = 1 << 30


@dataclass(frozen=True, slots=True)
class Lengths:
    """A distribution of lengths in tokens, at least 1. `mean` and `spread` are of normal and lognormal."""

    kind: Literal["uniform", "normal", "lognormal"]
    low: int
    high: int
    mean: float = 0.0
    spread: float = 0.0

    def draw(self, rng: np.random.Generator, count: int) -> list[int]:
        """`count` lengths."""
        if self.kind == "uniform":
            return [int(n) for n in rng.integers(self.low, self.high, count, endpoint=True)]
        if self.kind == "normal":
            drawn = rng.normal(self.mean, self.spread, count)
        else:
            drawn = rng.lognormal(math.log(self.mean) - self.spread**2 / 2, self.spread, count)
        return [int(n) for n in np.clip(drawn, self.low, self.high)]


def parse_lengths(text: str, flag: str) -> Lengths:
    """The distribution that `text` writes. Raises ConfigError, which names `flag`."""
    try:
        lengths = _parse(text)
    except ValueError as error:
        example = "512, 100-1024, normal:512:100 or lognormal:220:1.0:8:4096"
        raise ConfigError(f"{flag} {text}: should be like {example}") from error
    if not 1 <= lengths.low <= lengths.high:
        raise ConfigError(f"{flag} {text}: the lowest must be at least 1 and at most the highest")
    if lengths.kind != "uniform" and (lengths.mean <= 0 or lengths.spread < 0):
        raise ConfigError(f"{flag} {text}: the mean must be above 0, the spread not below")
    return lengths


def _parse(text: str) -> Lengths:
    if match := re.fullmatch(r"(\d+)(?:-(\d+))?", text):
        low = int(match[1])
        return Lengths("uniform", low, int(match[2] or low))
    kind, mean, spread, *bounds = text.split(":")
    if len(bounds) not in (0, 2):
        raise ValueError(text)
    low, high = map(int, bounds) if bounds else (1, _UNBOUNDED)
    if kind == "normal":
        return Lengths("normal", low, high, float(mean), float(spread))
    if kind == "lognormal":
        return Lengths("lognormal", low, high, float(mean), float(spread))
    raise ValueError(text)
