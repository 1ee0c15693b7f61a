"""Whether the client itself was late: then its figures are not the server's."""

import asyncio
import resource
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_BEAT_S = 0.01
_BUSY = 0.9  # of a core
_LATE_S = 0.005


@dataclass(frozen=True, slots=True)
class ClientHealth:
    """How the client's own process was. Milliseconds; `cpu` is a share of one core."""

    cpu: float
    lag_p50_ms: float
    lag_p99_ms: float
    lag_max_ms: float

    @property
    def doubt(self) -> str | None:
        """Why figures may be the client's, None when they are not."""
        if self.cpu > _BUSY:
            return f"the client used {self.cpu:.0%} of a core: share the load out over several clients"
        if self.lag_p99_ms > 1000 * _LATE_S:
            return (
                f"the client's event loop was late by {self.lag_p99_ms:.1f} ms at p99 (at most "
                f"{self.lag_max_ms:.0f}): latencies may be its own; give it a core of its own"
            )
        return None

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> "ClientHealth":
        """Of what `dataclasses.asdict` gave. Raises TypeError for anything else."""
        return cls(**plain)


@dataclass
class Heartbeat:
    """Wakes up a hundred times a second, and notes how late that was."""

    _late: list[float] = field(default_factory=list)
    _due: float = 0.0
    _handle: asyncio.TimerHandle | None = None
    _cpu: float = 0.0
    _start: float = 0.0

    def start(self) -> None:
        """From now on."""
        self._cpu, self._start = _cpu_seconds(), time.perf_counter()
        self._again()

    def stop(self) -> ClientHealth:
        """How it went."""
        if self._handle:
            self._handle.cancel()
        seconds = max(1e-9, time.perf_counter() - self._start)
        p50, p99, most = 1000 * np.percentile(self._late or [0.0], [50, 99, 100])
        used = (_cpu_seconds() - self._cpu) / seconds
        return ClientHealth(round(used, 3), *(round(float(value), 2) for value in (p50, p99, most)))

    def _again(self) -> None:
        loop = asyncio.get_running_loop()
        self._due = time.perf_counter() + _BEAT_S
        self._handle = loop.call_later(_BEAT_S, self._beat)

    def _beat(self) -> None:
        # A timer's own resolution is a millisecond, which is nobody's fault.
        self._late.append(max(0.0, time.perf_counter() - self._due - 0.001))
        self._again()


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
