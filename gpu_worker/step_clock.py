"""How long the parts of a step took."""

import time
from typing import NamedTuple, Protocol

import torch


class StepTimes(NamedTuple):
    """Microseconds a step waited at the worker, ran the model, and sampled; and when it ended (Unix, ns)."""

    queue_us: int
    forward_us: int
    sample_us: int
    ended_ns: int

    @property
    def busy_us(self) -> int:
        return self.forward_us + self.sample_us


class StepClock(Protocol):
    """Marks the borders of one step's parts: made when the step starts."""

    def forward_done(self) -> None:
        """The model is done, or on a GPU: everything of it is queued."""
        ...

    def sample_done(self) -> None:
        """The same of sampling."""
        ...

    def times(self) -> StepTimes:
        """Once the results have arrived."""
        ...


def start_clock(device: torch.device, arrived_ns: int) -> StepClock:
    """A running clock for a step that came at `arrived_ns` of `time.perf_counter_ns`."""
    return DeviceClock(arrived_ns) if device.type == "cuda" else HostClock(arrived_ns)


class HostClock:
    """Where the device is the CPU, the host's clock sees everything."""

    def __init__(self, arrived_ns: int) -> None:
        self._marks = [arrived_ns, time.perf_counter_ns()]
        self._ended_ns = 0

    def forward_done(self) -> None:
        self._marks.append(time.perf_counter_ns())

    def sample_done(self) -> None:
        self._marks.append(time.perf_counter_ns())
        self._ended_ns = time.time_ns()

    def times(self) -> StepTimes:
        arrived, started, forwarded, sampled = (mark // 1000 for mark in self._marks)
        return StepTimes(started - arrived, forwarded - started, sampled - forwarded, self._ended_ns)


class DeviceClock:
    """CUDA events: what the GPU spent. All the rest, up to the results' arrival, counts as waiting."""

    def __init__(self, arrived_ns: int) -> None:
        self._arrived_ns = arrived_ns
        self._started, self._forwarded, self._sampled = (
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(3)
        )
        self._started.record()

    def forward_done(self) -> None:
        self._forwarded.record()

    def sample_done(self) -> None:
        self._sampled.record()

    def times(self) -> StepTimes:
        total_us = (time.perf_counter_ns() - self._arrived_ns) // 1000
        forward_us = round(self._started.elapsed_time(self._forwarded) * 1000)
        sample_us = round(self._forwarded.elapsed_time(self._sampled) * 1000)
        queue_us = max(0, total_us - forward_us - sample_us)
        return StepTimes(queue_us, forward_us, sample_us, time.time_ns())
