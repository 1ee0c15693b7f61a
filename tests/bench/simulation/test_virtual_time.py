import asyncio
import time

import pytest

from bench.simulation.virtual_time import run


def test_an_hour_passes_at_once_and_in_order():
    async def main():
        woken = []

        async def sleeper(seconds):
            await asyncio.sleep(seconds)
            woken.append((seconds, asyncio.get_running_loop().time()))

        await asyncio.gather(sleeper(3600), sleeper(1), sleeper(60))
        return woken

    started = time.perf_counter()
    woken = run(main())
    assert time.perf_counter() - started < 5
    assert [seconds for seconds, _ in woken] == [1, 60, 3600]
    assert all(at == pytest.approx(seconds, abs=1e-6) for seconds, at in woken)


def test_waiting_for_what_cannot_come_is_an_error():
    async def main():
        await asyncio.get_running_loop().create_future()

    with pytest.raises(RuntimeError, match="stands still"):
        run(main())
