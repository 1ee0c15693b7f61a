"""Traces of production services, replayed: arrival times, lengths, and the prefixes that prompts share.

Mooncake's JSON lines (https://github.com/kvcache-ai/Mooncake, FAST'25): `timestamp` in milliseconds,
`input_length` and `output_length` in tokens, and `hash_ids`, one for each block of 512 tokens of the prompt;
equal ids mean equal content and equal prefix, so a block's content is drawn from its id alone.

Azure's CSV (https://github.com/Azure/AzurePublicDataset): `TIMESTAMP`, `ContextTokens`, `GeneratedTokens`. It
says nothing of content: no prompt shares anything.
"""

import csv
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from pathlib import Path

import numpy as np

from batchyard.errors import ConfigError
from batchyard.loadtest.prompts import Alphabet, Symbols
from batchyard.loadtest.sessions import Session

BLOCK = 512  # tokens of a Mooncake block
_STRANGE = 0x57A6


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request of a trace: seconds since the first one, tokens, and Mooncake's block ids."""

    at: float
    input_length: int
    output_length: int
    blocks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Replay:
    """A trace as a workload. `speed` times its pace; `scale` times its lengths, blocks and all.

    Prompts are cut at `max_input` tokens and answers at `max_output`.
    """

    arrivals: Sequence[Arrival]
    alphabet: Alphabet
    speed: float = 1.0
    scale: float = 1.0
    max_input: int | None = None
    max_output: int | None = None
    chat: bool = False
    timed: bool = True

    @property
    def size(self) -> int:
        """Requests there are."""
        return len(self.arrivals)

    def sessions(self, count: int, seed: int) -> Iterator[Session]:
        """The first `count` requests, at their times. Another seed is other content of the same shape."""
        for number, arrival in enumerate(islice(self.arrivals, count)):
            symbols = self._prompt(arrival, number, seed)
            content = self.alphabet.content(symbols)
            yield Session(
                [{"role": "user", "content": content}] if self.chat else content,
                self._scaled(arrival.output_length, self.max_output),
                at=arrival.at / self.speed,
            )

    def strangers(self, count: int, seed: int) -> Iterator[Session]:
        """The first requests with other content, at no time in particular."""
        return (replace(session, at=None) for session in self.sessions(count, seed ^ _STRANGE))

    def _prompt(self, arrival: Arrival, number: int, seed: int) -> Symbols:
        length = self._scaled(arrival.input_length, self.max_input)
        if not arrival.blocks:
            return self.alphabet.draw(np.random.default_rng([seed, 1, number]), length)
        block = max(1, round(BLOCK * self.scale))
        needed = arrival.blocks[: -(-length // block)]
        parts = [self.alphabet.draw(np.random.default_rng([seed, 0, name]), block) for name in needed]
        missing = length - block * len(parts)
        if missing > 0:  # lengths are rounded otherwise than blocks are: what is left is the request's own
            parts.append(self.alphabet.draw(np.random.default_rng([seed, 1, number]), missing))
        return np.concatenate(parts)[:length]

    def _scaled(self, tokens: int, most: int | None) -> int:
        scaled = max(1, int(tokens * self.scale))
        return min(scaled, most) if most else scaled


def is_trace(path: Path, first_line: str) -> bool:
    """Whether a file that begins with `first_line` is a trace in one of the two forms."""
    return path.suffix == ".csv" or ('"hash_ids"' in first_line and '"input_length"' in first_line)


def read_trace(path: Path) -> list[Arrival]:
    """The requests of a trace in the order of their times. Raises ConfigError, which names the line."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            arrivals = list(_azure(file) if path.suffix == ".csv" else _mooncake(file))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except _Line as error:
        raise ConfigError(f"{path}, line {error.number}: {error.problem}") from error
    if not arrivals:
        raise ConfigError(f"{path}: there is no request in it")
    arrivals.sort(key=lambda arrival: arrival.at)
    start = arrivals[0].at
    return [replace(arrival, at=arrival.at - start) for arrival in arrivals]


class _Line(Exception):
    def __init__(self, number: int, problem: str) -> None:
        self.number, self.problem = number, problem


def _mooncake(lines: Iterator[str]) -> Iterator[Arrival]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            blocks = tuple(_block_name(name) for name in row.get("hash_ids", ()))
            yield Arrival(
                row["timestamp"] / 1000, int(row["input_length"]), int(row["output_length"]), blocks
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise _Line(number, "needs numbers timestamp, input_length, output_length") from error


def _block_name(name: object) -> int:
    return name if isinstance(name, int) and name >= 0 else zlib.crc32(str(name).encode())


def _azure(lines: Iterator[str]) -> Iterator[Arrival]:
    for number, row in enumerate(csv.DictReader(lines), 2):
        try:
            at = datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp()
            yield Arrival(at, int(row["ContextTokens"]), int(row["GeneratedTokens"]))
        except (ValueError, TypeError, KeyError) as error:
            raise _Line(number, "needs columns TIMESTAMP, ContextTokens, GeneratedTokens") from error
