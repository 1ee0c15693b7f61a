"""How long the parts of a step took."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch


class StepTimes(NamedTuple):
    """Microseconds a step waited at the worker, ran the model, and sampled; and when it ended (Unix, ns).

    idle_us: how long the device had nothing to do between the step before and this one although this one had
    come to the worker before the one before was done. 0 where it came later, or where that is not known.
    """

    queue_us: int
    forward_us: int
    sample_us: int
    idle_us: int
    ended_ns: int

    @property
    def busy_us(self) -> int:
        return self.forward_us + self.sample_us


class StepClock(Protocol):
    """Marks the borders of one step's parts."""

    def begin(self) -> None:
        """The step's first work is about to be queued; what the host does before counts as waiting."""
        ...

    def forward_done(self) -> None:
        """The model is done, or on a GPU: everything of it is queued."""
        ...

    def sample_done(self) -> None:
        """The same of sampling."""
        ...

    def times(self) -> StepTimes:
        """Once the results have arrived."""
        ...


class StepClocks(Protocol):
    """Makes the clock of each step of one device, in the order of the steps."""

    def start(self, arrived_ns: int) -> StepClock:
        """For a step that came at `arrived_ns` of `time.perf_counter_ns`."""
        ...


def clocks_for(device: torch.device) -> StepClocks:
    """The right ones for the device."""
    return DeviceClocks() if device.type == "cuda" else HostClocks()


class HostClocks:
    """Where the device is the CPU, it works while the host does."""

    def start(self, arrived_ns: int) -> "HostClock":
        return HostClock(arrived_ns)


class HostClock:
    """The host's clock sees everything."""

    def __init__(self, arrived_ns: int) -> None:
        self._marks = [arrived_ns]
        self._ended_ns = 0

    def begin(self) -> None:
        self._marks.append(time.perf_counter_ns())

    def forward_done(self) -> None:
        self._marks.append(time.perf_counter_ns())

    def sample_done(self) -> None:
        self._marks.append(time.perf_counter_ns())
        self._ended_ns = time.time_ns()

    def times(self) -> StepTimes:
        arrived, started, forwarded, sampled = (mark // 1000 for mark in self._marks)
        return StepTimes(started - arrived, forwarded - started, sampled - forwarded, 0, self._ended_ns)


class Event(Protocol):
    """A mark in the order of what is queued on a device."""

    def record(self) -> None: ...

    def elapsed_time(self, end_event: Any) -> float:
        """Milliseconds to a later one of the same kind. Both must have been passed, or this waits."""
        ...


@dataclass(slots=True)
class _End:
    """Of a step: its last mark, and when its results were seen (`time.perf_counter_ns`), once they were."""

    event: Event
    seen_ns: int | None = None


class DeviceClocks:
    """Each clock knows where the step before ended, and nothing of those before that."""

    def __init__(self, new_event: Callable[[], Event] | None = None) -> None:
        self._new_event = new_event or _cuda_event
        self._last: _End | None = None

    def start(self, arrived_ns: int) -> "DeviceClock":
        started, forwarded, sampled = (self._new_event() for _ in range(3))
        previous, self._last = self._last, _End(sampled)
        return DeviceClock(arrived_ns, started, forwarded, self._last, previous)


class DeviceClock:
    """CUDA events: what the GPU spent. All the rest, up to the results' arrival, counts as waiting.

    Pauses between the kernels of a part count as that part's.
    """

    def __init__(
        self, arrived_ns: int, started: Event, forwarded: Event, end: _End, previous: _End | None
    ) -> None:
        self._arrived_ns = arrived_ns
        self._started, self._forwarded, self._end = started, forwarded, end
        self._previous = previous

    def begin(self) -> None:
        self._started.record()

    def forward_done(self) -> None:
        self._forwarded.record()

    def sample_done(self) -> None:
        self._end.event.record()

    def times(self) -> StepTimes:
        self._end.seen_ns = time.perf_counter_ns()
        total_us = (self._end.seen_ns - self._arrived_ns) // 1000
        forward_us = _between_us(self._started, self._forwarded)
        sample_us = _between_us(self._forwarded, self._end.event)
        queue_us = max(0, total_us - forward_us - sample_us)
        return StepTimes(queue_us, forward_us, sample_us, self._idle_us(), time.time_ns())

    def _idle_us(self) -> int:
        # Results are seen a little after the step's end, but nothing that they set off can come before that.
        previous = self._previous
        if previous is None or previous.seen_ns is None or self._arrived_ns > previous.seen_ns:
            return 0
        return max(0, _between_us(previous.event, self._started))


def _between_us(start: Event, end: Event) -> int:
    return round(start.elapsed_time(end) * 1000)


def _cuda_event() -> Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
