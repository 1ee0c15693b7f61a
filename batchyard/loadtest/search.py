"""Which settings to try next: a grid, or a climb from neighbour to neighbour."""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from batchyard.loadtest.usage import Usage

_GAIN = 1.02  # less is noise


@dataclass(frozen=True, slots=True)
class Setting:
    """Of `batchyard serve`."""

    max_num_batched_tokens: int
    max_num_seqs: int

    @property
    def flags(self) -> list[str]:
        """For the command line."""
        tokens, seqs = str(self.max_num_batched_tokens), str(self.max_num_seqs)
        return ["--max-num-batched-tokens", tokens, "--max-num-seqs", seqs]


@dataclass(frozen=True, slots=True)
class Trial:
    """A setting that was measured. Latencies in milliseconds; with `error` it could not be served."""

    setting: Setting
    req_per_s: float = 0.0
    output_tok_per_s: float = 0.0
    ttft_p99: float | None = None
    itl_p99: float | None = None
    good: float | None = None  # share of requests within the objectives
    keeps: bool = True  # the objectives
    lost: int = 0  # requests that failed, were refused, or answered too shortly
    usage: Usage = field(default_factory=Usage)
    error: str | None = None

    def beats(self, other: "Trial") -> bool:
        """Whether it is better by more than noise: the objectives first, then tokens a second."""
        mine, theirs = (trial.keeps and trial.error is None for trial in (self, other))
        if mine != theirs:
            return mine
        if not mine and self.good is not None and other.good is not None:
            return self.good > other.good * _GAIN  # nearer to keeping them
        return self.output_tok_per_s > other.output_tok_per_s * _GAIN

    def to_json(self) -> dict[str, Any]:
        """As it is kept."""
        return asdict(self)

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "Trial":
        """The inverse. Raises TypeError or KeyError for anything else."""
        made = {"setting": Setting(**plain["setting"]), "usage": Usage(**plain["usage"])}
        return cls(**{**plain, **made})


@dataclass(frozen=True, slots=True)
class Space:
    """The values of each setting, in rising order."""

    tokens: Sequence[int]
    seqs: Sequence[int]

    def everything(self) -> Iterator[Setting]:
        """All combinations that make sense: each running request adds a token to a step."""
        for tokens in self.tokens:
            yield from (Setting(tokens, seqs) for seqs in self.seqs if seqs <= tokens)

    def neighbours(self, setting: Setting) -> Iterator[Setting]:
        """One value up or down in one of the two."""
        allowed = set(self.everything())
        at_tokens = self.tokens.index(setting.max_num_batched_tokens)
        at_seqs = self.seqs.index(setting.max_num_seqs)
        for step in (1, -1):
            if 0 <= at_seqs + step < len(self.seqs):
                other = Setting(setting.max_num_batched_tokens, self.seqs[at_seqs + step])
                yield from [other] if other in allowed else []
            if 0 <= at_tokens + step < len(self.tokens):
                other = Setting(self.tokens[at_tokens + step], setting.max_num_seqs)
                yield from [other] if other in allowed else []


Try = Callable[[Setting], Awaitable[Trial | None]]
"""Measures a setting, or remembers it; None when there is no time left."""


async def grid(space: Space, attempt: Try) -> None:
    """Tries everything."""
    for setting in space.everything():
        if await attempt(setting) is None:
            return


async def climb(space: Space, start: Setting, attempt: Try) -> None:
    """Moves to a better neighbour until there is none."""
    here = await attempt(start)
    while here is not None:
        better = None
        for setting in space.neighbours(here.setting):
            if (trial := await attempt(setting)) is None:
                return
            if trial.beats(here):
                better = trial
                break
        here = better
