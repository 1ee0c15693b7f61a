"""What a stand-in worker noted of its steps, and what that says of the others' share in a request's time."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Times = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int32]


class Record:
    """Kept while the worker serves. Times in seconds of `time.perf_counter`."""

    def __init__(self) -> None:
        self._steps: list[tuple[float, float, float]] = []
        self._names: list[str] = []
        self._entered: list[int] = []  # step in which each request got its row
        self._sampled: dict[int, tuple[int, int]] = {}  # request: the first and the last step it sampled in
        self._in_row: dict[int, int] = {}  # row: request

    def step(
        self, arrived: float, start: float, end: float, entered: Iterable[tuple[int, str]], sampled: Rows
    ) -> None:
        """A step; `entered` are (row, request id), `sampled` rows."""
        number = len(self._steps)
        self._steps.append((arrived, start, end))
        for row, name in entered:
            self._in_row[row] = len(self._names)
            self._names.append(name)
            self._entered.append(number)
        for row in sampled.tolist():
            request = self._in_row[row]
            first, _ = self._sampled.get(request, (number, number))
            self._sampled[request] = (first, number)

    def save(self, path: Path) -> None:
        """Writes all to a file. Requests that sampled nothing are left out."""
        kept = sorted(self._sampled)
        sampled = np.array([self._sampled[request] for request in kept], np.int64).reshape(-1, 2)
        np.savez(
            path,
            steps=np.array(self._steps, np.float64).reshape(-1, 3),
            names=np.array([self._names[request] for request in kept], np.str_),
            entered=np.array([self._entered[request] for request in kept], np.int64),
            sampled=sampled,
        )


@dataclass(frozen=True, slots=True)
class Added:
    """Seconds that were lost on requests beside a gateway and a scheduler that take no time at all.

    before   from when a step could have been sent that had the request in it, until such a step came
    between  the worker was idle although the request had tokens to come
    after    from the end of a step until its token was at the client
    """

    before: Times
    between: Times
    after_first: Times  # token
    after_last: Times

    @property
    def to_first(self) -> Times:
        """On the way to the first token."""
        return self.before + self.after_first

    @property
    def in_all(self) -> Times:
        """On the way to the last token."""
        return self.before + self.between + self.after_last

    @classmethod
    def join(cls, parts: "Iterable[Added]") -> "Added":
        """All requests of several workers."""
        every = list(parts)
        return cls(
            np.concatenate([part.before for part in every]),
            np.concatenate([part.between for part in every]),
            np.concatenate([part.after_first for part in every]),
            np.concatenate([part.after_last for part in every]),
        )


def added(path: Path, asked: dict[str, tuple[float, float, float]]) -> Added:
    """Of one worker's requests. `asked`: request id to when it was sent, and its first and last token came.

    A worker that is busy is sent a step when it has answered one, so the first step that could have a request
    leaves at the next end of a step. That the request waits until then, and until the steps before its own
    are done, is the worker's own time; so is what its steps take.
    """
    record = np.load(path)
    arrived, starts, ends = record["steps"].T
    names = record["names"].tolist()
    known = np.array([name in asked for name in names], np.bool_)
    sent, first, last = (
        np.array([asked[name] for name in names if name in asked], np.float64).reshape(-1, 3).T
    )
    entered = record["entered"][known]
    first_step, last_step = record["sampled"][known].T
    idle = np.cumsum(
        np.append(0.0, np.maximum(0.0, starts[1:] - ends[:-1]))
    )  # before each step, since the first
    # Steps that had come and were not done when the request was sent: where there are none, it need not wait.
    answered = np.searchsorted(ends, sent)
    busy = np.searchsorted(arrived, sent) > answered
    possible = np.where(busy, ends[np.minimum(answered, len(ends) - 1)], sent)
    return Added(
        before=arrived[entered] - possible,
        between=idle[last_step] - idle[entered],
        after_first=first - ends[first_step],
        after_last=last - ends[last_step],
    )
