"""The scheduler runs while it holds the lease, and is a standby while it does not."""

import asyncio

import structlog

from scheduler.core import Scheduler
from scheduler.lease import Lease

log = structlog.get_logger()


async def run_while_active(scheduler: Scheduler, lease: Lease) -> None:
    """Steps the workers whenever `lease` is held. Runs until cancelled.

    Gateways leave by themselves when it is lost (`SchedulerService`), and their requests with them.
    """
    while True:
        fence = await lease.held()
        log.info("active", fence=fence)
        running = asyncio.create_task(scheduler.run())
        ended = asyncio.create_task(lease.ended(fence))
        try:
            await asyncio.wait([running, ended], return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
            running.cancel()
            await asyncio.wait([running])
        if not running.cancelled():
            running.result()
        log.info("standby")
