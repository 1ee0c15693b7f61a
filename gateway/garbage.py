"""When Python looks for garbage cycles among all objects: rarely, and rather when few are served.

Such a full collection walks over everything that lives, all requests and their streams, and everybody waits:
half a second with five thousand streams. Python starts one whenever a quarter more has outlived the young
generations, so under load it would come every few seconds. Cycles that die young are collected as ever.
"""

import asyncio
import gc
from collections.abc import Callable

_NEVER = 1 << 30
_LOOK_EVERY_S = 60.0
_FEW = 50  # requests; with more, a collection is put off
_MOST_PUT_OFF = 10  # times


async def collect_rarely(num_live: Callable[[], int], look_every_s: float = _LOOK_EVERY_S) -> None:
    """Takes full collections over from Python, until cancelled. They leave out what exists now.

    `num_live` tells how many requests are being answered.
    """
    before = gc.get_threshold()
    gc.set_threshold(before[0], before[1], _NEVER)
    gc.collect()
    gc.freeze()
    put_off = 0
    try:
        while True:
            await asyncio.sleep(look_every_s)
            if num_live() <= _FEW or put_off == _MOST_PUT_OFF:
                gc.collect()
                put_off = 0
            else:
                put_off += 1
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
