"""What makes a real worker slow, wrong or short of memory: orders in a file, read anew at each step.

Without the file it is the worker as it is. The file has one of these words:

    slow          a step takes ten times as long
    wrong-step    answers name a step that was never sent
    wrong-token   tokens are outside the vocabulary
    wrong-rows    rows answer that did not sample
    nan           logits are not numbers
    no-memory     the device has no memory for a step
    stall         blocks do not move between the KV cache and host memory
    eat           memory is taken until there is no more

Whatever the orders are, a prompt that begins with POISON kills the worker.
"""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from protos.packing import pack_i32, unpack_i32
from protos.step_pb2 import StepBatch, StepResult

POISON = (3, 1, 4, 1, 5, 9, 2, 6)  # tokens; no question begins so

_SLOWER = 10
_MOUTHFUL = 16 << 20  # bytes
_POISON = pack_i32(POISON)


class Orders:
    """What the worker is to do, as the file says now."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def give(self, order: str) -> None:
        """From the next step on; an empty one for nothing."""
        new = self._path.with_suffix(".new")
        new.write_text(order)
        new.replace(self._path)

    @property
    def now(self) -> str:
        """Empty where there is none."""
        return self._path.read_text() if self._path.exists() else ""


def meddle(module: Any, orders: Orders) -> None:
    """`module` is `gpu_worker.main`: what its worker starts with is made to obey."""

    def obedient(start: Callable[..., Any]) -> Callable[..., Any]:
        def start_and_obey(*arguments: Any) -> Any:
            started = start(*arguments)
            _obey_in_steps(started.runner, orders)
            if started.host_cache:
                _obey_in_moves(started.host_cache, orders)
            return started

        return start_and_obey

    module.start_runner = obedient(module.start_runner)
    module.start_smaller = obedient(module.start_smaller)  # what it becomes when memory was short


def _obey_in_steps(runner: Any, orders: Orders) -> None:
    execute, logits = runner.execute, runner.model.logits
    eaten: list[bytearray] = []

    def obeying_execute(batch: StepBatch, arrived_ns: int) -> Any:
        order, began = orders.now, time.perf_counter()
        if any(row.tokens.startswith(_POISON) for row in batch.new_rows):
            os.kill(os.getpid(), signal.SIGKILL)
        while order == "eat":
            eaten.append(bytearray(os.urandom(1) * _MOUTHFUL))
        if order == "no-memory":
            raise torch.OutOfMemoryError("as ordered")
        launched = execute(batch, arrived_ns)
        if order == "slow":
            time.sleep((_SLOWER - 1) * (time.perf_counter() - began))
        return _Spoilt(launched, _SPOILERS[order]) if order in _SPOILERS else launched

    def obeying_logits(hidden: Any) -> Any:
        found = logits(hidden)
        return found * float("nan") if orders.now == "nan" else found

    runner.execute = obeying_execute
    runner.model.logits = obeying_logits


class _Spoilt:
    """A launched step with another result."""

    def __init__(self, launched: Any, spoil: Callable[[StepResult], None]) -> None:
        self._launched = launched
        self._spoil = spoil

    def result(self) -> tuple[StepResult, Any]:
        result, times = self._launched.result()
        self._spoil(result)
        return result, times

    def __getattr__(self, name: str) -> Any:
        return getattr(self._launched, name)


def _wrong_step(result: StepResult) -> None:
    result.step += 7


def _wrong_token(result: StepResult) -> None:
    result.tokens = pack_i32(unpack_i32(result.tokens) + 1_000_000)


def _wrong_rows(result: StepResult) -> None:
    rows = unpack_i32(result.rows)
    result.rows = pack_i32(np.where(np.arange(len(rows)) == 0, rows + 1, rows))


_SPOILERS = {"wrong-step": _wrong_step, "wrong-token": _wrong_token, "wrong-rows": _wrong_rows}


def _obey_in_moves(host_cache: Any, orders: Orders) -> None:
    save, load = host_cache.save, host_cache.load

    def stalling(move: Callable[..., None]) -> Callable[..., None]:
        def moved(*arguments: Any) -> None:
            while orders.now == "stall":
                time.sleep(0.01)
            move(*arguments)

        return moved

    host_cache.save, host_cache.load = stalling(save), stalling(load)
