"""What a load test plays: sessions, each one request or a conversation of several."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

Message = Mapping[str, object]
Content = Sequence[int] | str | Sequence[Message]
"""Token ids or text for completions, messages for chats."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What the user says after an answer, `think_s` seconds later."""

    text: str
    max_tokens: int
    think_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Session:
    """A request, and the turns that follow it. `at`: seconds after the start, in traces."""

    content: Content
    max_tokens: int
    turns: tuple[Turn, ...] = ()
    at: float | None = None

    @property
    def input_tokens(self) -> int:
        """Of the prompt, where it is ids; else 0: only the server knows."""
        ids = self.content and not isinstance(self.content, str) and isinstance(self.content[0], int)
        return len(self.content) if ids else 0


class Workload(Protocol):
    """Where sessions come from."""

    @property
    def size(self) -> int | None:
        """How many there are; None: as many as are asked for."""
        ...

    @property
    def timed(self) -> bool:
        """Whether its sessions have times of their own."""
        ...

    def sessions(self, count: int, seed: int) -> Iterator[Session]:
        """The first `count`, the same for the same seed."""
        ...

    def strangers(self, count: int, seed: int) -> Iterator[Session]:
        """`count` requests of like lengths that share nothing with its sessions: to warm up with."""
        ...
