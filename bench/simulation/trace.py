"""Mooncake's traces: arrivals whose prompts share what they shared in production.

https://github.com/kvcache-ai/Mooncake: JSON lines with `timestamp` (ms), `input_length`, `output_length`
(tokens) and `hash_ids`, one per 512 tokens of the prompt: equal ids are equal content after equal content.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.simulation.lru import IdealCache

BLOCK = 512


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request: seconds from the start, tokens of prompt and answer, what the prompt consists of."""

    at: float
    length: int
    output: int
    content: tuple[int, ...]

    def tokens(self) -> npt.NDArray[np.int32]:
        """The prompt [length] int32: 512 tokens for each content id, which stand nowhere else."""
        starts = BLOCK * np.array(self.content)
        tokens = (starts[:, None] + np.arange(BLOCK)).ravel()
        return tokens[: self.length].astype(np.int32)


def read(path: Path, pace: float = 1.0, most: int | None = None) -> list[Arrival]:
    """The first `most` requests of a trace, coming `pace` times as fast."""
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for _, line in zip(range(most or 10**9), lines, strict=False)]
    return [
        Arrival(
            at=row["timestamp"] / 1000 / pace,
            length=row["input_length"],
            output=max(1, row["output_length"]),
            content=tuple(row["hash_ids"]),
        )
        for row in rows
    ]


def ideal_hit_rate(arrivals: Sequence[Arrival], tokens: int) -> float:
    """Share of prompt tokens found by one LRU cache of so many tokens, were requests served one by one."""
    cache = IdealCache(tokens // BLOCK)
    found = sum(min(cache.visit(arrival.content) * BLOCK, arrival.length - 1) for arrival in arrivals)
    return found / sum(arrival.length for arrival in arrivals)
