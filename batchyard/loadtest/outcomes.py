"""What came of each request of a load test."""

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class Kind(StrEnum):
    """How a request ended."""

    OK = "ok"
    REFUSED = "refused"  # 429, or 503 with Retry-After: the server has no room now, and says so
    FAILED = "failed"
    CANCELLED = "cancelled"  # by Ctrl-C, or by the end of the run


@dataclass(frozen=True)
class Outcome:
    """One request. Times are seconds since the run began.

    A stamp is when an event with output came: in completions any event with a choice, in chats one whose
    delta says something (no role alone, no empty end). Several tokens may come in one event.
    """

    number: int  # in the workload
    kind: Kind
    due: float  # when it was to be sent
    sent: float  # when it was, for the first time if several
    end: float  # of the last token, or of the request where there was none
    asked: int  # tokens
    input_tokens: int = 0  # by the server's count where it tells, else by ours
    output_tokens: int = 0
    stamps: list[float] = field(default_factory=list)
    turn: int = 0
    status: int = 0  # of HTTP; 0: there was no answer
    error: str | None = None
    refusals: int = 0  # before this answer
    retry_after: float | None = None  # seconds; the last that was named
    queue: float | None = None  # seconds, where a header tells
    counted: bool = True  # whether the server told its usage
    pinned: bool = False  # ignore_eos was asked for, so that fewer tokens than asked are a fault

    @property
    def ok(self) -> bool:
        """Whether it was answered to the end."""
        return self.kind is Kind.OK

    @property
    def short(self) -> bool:
        """Whether tokens are missing."""
        return self.ok and self.pinned and self.output_tokens < self.asked

    @property
    def ttft(self) -> float:
        """Seconds to the first token; of what is `ok`."""
        return self.stamps[0] - self.sent

    @property
    def e2e(self) -> float:
        """Seconds to the last token."""
        return self.end - self.sent

    @property
    def tpot(self) -> float | None:
        """Seconds per output token after the first; None for answers of one."""
        if self.output_tokens < 2 or not self.stamps:
            return None
        return (self.stamps[-1] - self.stamps[0]) / (self.output_tokens - 1)

    @cached_property
    def gaps(self) -> Floats:
        """Seconds between events with output, `[num_events - 1]`."""
        return np.diff(self.stamps)

    def to_json(self) -> dict[str, Any]:
        """What differs from the defaults; times to the microsecond."""
        plain = asdict(self) | {"kind": self.kind.value}
        plain["stamps"] = [round(stamp, 6) for stamp in self.stamps]
        for name in ("due", "sent", "end"):
            plain[name] = round(plain[name], 6)
        needed = ("number", "kind", "due", "sent", "end", "asked")
        defaults = {f.name: f.default for f in type(self).__dataclass_fields__.values()}
        return {k: v for k, v in plain.items() if k in needed or (v != defaults[k] and v != [])}

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> "Outcome":
        """The inverse. Raises TypeError, KeyError or ValueError for anything else."""
        return cls(**(plain | {"kind": Kind(plain["kind"])}))
