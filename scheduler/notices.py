"""What a worker must be told with its next step, besides what to compute in it."""

from collections.abc import Iterable

from batchyard.spans import pack_trace_ids
from protos.packing import pack_i32
from protos.step_pb2 import StepBatch


class Notices:
    """Gathered between steps. True while there are any."""

    def __init__(self) -> None:
        self._freed: list[int] = []
        self._keep: list[bytes] = []

    def __bool__(self) -> bool:
        return bool(self._freed or self._keep)

    def freed(self, row: int) -> None:
        """The request in `row` takes part no more."""
        self._freed.append(row)

    def keep(self, trace_ids: Iterable[int]) -> None:
        """These traces are to be exported, though they were not sampled."""
        self._keep += pack_trace_ids(trace_ids)

    def pack(self, batch: StepBatch) -> None:
        """Puts all of it into the step that is about to be sent."""
        batch.freed_rows = pack_i32(self._freed)
        batch.keep.extend(self._keep)
        self._freed.clear()
        self._keep.clear()
