"""Carries out moves between the device's blocks and the host's, beside the steps."""

import time
from collections.abc import Callable
from concurrent.futures import Future

from gpu_worker.host_cache import HostCache, Ids
from gpu_worker.threads import single_thread
from protos.packing import unpack_i32
from protos.step_pb2 import Moved, StepBatch, StepResult

Tell = Callable[[StepResult], None]
Fail = Callable[[Exception], None]


class Mover:
    """Saves on one thread and loads on another, both in order. Moves must have been checked."""

    def __init__(self, host: HostCache) -> None:
        self._host = host
        self._saves = single_thread("saves")
        self._loads = single_thread("loads")

    def start(self, batch: StepBatch, tell: Tell, fail: Fail) -> None:
        """Begins the moves of `batch`. On other threads, `tell` gets news of the saves and of the loads, and
        `fail` what went wrong.
        """
        if batch.saved_blocks:
            ids = unpack_i32(batch.saved_blocks), unpack_i32(batch.saved_to)
            _report(self._saves.submit(self._save, batch.step, *ids), tell, fail)
        if batch.loaded_blocks:
            ids = unpack_i32(batch.loaded_blocks), unpack_i32(batch.loaded_from)
            _report(self._loads.submit(self._load, batch.step, *ids), tell, fail)

    def drain(self) -> None:
        """Waits until nothing is in motion."""
        for thread in (self._saves, self._loads):
            thread.submit(lambda: None).result()

    def shutdown(self) -> None:
        """Waits for what has begun, and gives the host memory back."""
        self._saves.shutdown()
        self._loads.shutdown()
        self._host.close()

    def _save(self, step: int, blocks: Ids, host_blocks: Ids) -> StepResult:
        started = time.perf_counter_ns()
        self._host.save(blocks, host_blocks)
        return StepResult(moved=Moved(saved=step, save_us=_us_since(started)))

    def _load(self, step: int, blocks: Ids, host_blocks: Ids) -> StepResult:
        started = time.perf_counter_ns()
        self._host.load(blocks, host_blocks)
        return StepResult(moved=Moved(loaded=step, load_us=_us_since(started)))


def _us_since(started_ns: int) -> int:
    return (time.perf_counter_ns() - started_ns) // 1000


def _report(moving: "Future[StepResult]", tell: Tell, fail: Fail) -> None:
    def report(moved: "Future[StepResult]") -> None:
        error = moved.exception()
        if isinstance(error, Exception):
            fail(error)
        else:
            tell(moved.result())

    moving.add_done_callback(report)
