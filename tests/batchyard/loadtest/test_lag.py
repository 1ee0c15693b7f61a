import asyncio
import time

from batchyard.loadtest.lag import ClientHealth, Heartbeat


async def test_a_loop_that_is_held_up_is_noticed():
    heart = Heartbeat()
    heart.start()
    await asyncio.sleep(0.03)
    time.sleep(0.1)  # noqa: ASYNC251 - it is what is to be noticed
    await asyncio.sleep(0.03)
    health = heart.stop()
    assert 80 < health.lag_max_ms < 400
    assert "late" in health.doubt


async def test_an_idle_client_is_trusted():
    heart = Heartbeat()
    heart.start()
    await asyncio.sleep(0.05)
    health = heart.stop()
    assert health.cpu < 0.9
    assert health.lag_max_ms < 80


def test_a_full_core_is_a_doubt():
    assert "98% of a core" in ClientHealth(0.98, 0.0, 0.1, 0.2).doubt
    assert ClientHealth(0.3, 0.0, 0.1, 30.0).doubt is None
