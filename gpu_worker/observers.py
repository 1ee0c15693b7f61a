"""What wants to know of finished steps: metrics and traces."""

from typing import NamedTuple, Protocol

from gpu_worker.launched import StepLoad
from gpu_worker.step_clock import StepTimes
from protos.step_pb2 import StepBatch, StepResult


class FinishedStep(NamedTuple):
    """All there is to know of a step."""

    batch: StepBatch
    result: StepResult
    times: StepTimes
    load: StepLoad


class StepObserver(Protocol):
    """Told of the steps of a stream in order, on the thread that finishes them."""

    def observe(self, step: FinishedStep) -> None:
        """A step has been done."""
        ...

    def reset(self) -> None:
        """The stream is over: all rows are free."""
        ...
