"""How many workers the present load needs: what `batchyard_workers_wanted` says. Derived in docs/metrics.md.

    use      of a resource, in workers: 1.0 where it would fill one. Rows, blocks, and time to compute. It
             hardly depends on how many workers share it
    growth   requests that come for each that begins to run; above 1 the queue grows, and so would the use
             if there were room
    wait     seconds that somebody who comes now will wait

    wanted = max(use) * growth / TARGET  +  workers * max(0, wait - objective / 2) / HORIZON

The first term is what the load needs from now on, with headroom. The second makes up for the past: what of
the present queue is longer than half of the objective for the first token (the other half is for computing
the prompt) is to be done with within HORIZON.
"""

from dataclasses import dataclass

from scheduler.drain import Size

TARGET = 0.8  # share of a worker that is used: with less to spare, queues are long at random arrivals
HORIZON = 30.0  # seconds; about what it takes until a new worker has loaded


@dataclass(frozen=True, slots=True)
class Use:
    """What is used of all workers together, each resource in workers."""

    rows: float = 0.0
    blocks: float = 0.0
    compute: float = 0.0

    @property
    def scarcest(self) -> float:
        """Of the resource that most is used of."""
        return max(self.rows, self.blocks, self.compute)


def growth(offered: Size, begun: Size) -> float:
    """Requests or tokens that came for each that began in the same time; at least 1.

    One more of each is counted, so that a few do not look like a flood.
    """
    return max(
        1.0,
        (offered.requests + 1) / (begun.requests + 1),
        (offered.tokens + 1) / (begun.tokens + 1),
    )


def workers_wanted(workers: int, use: Use, growth: float, wait_s: float, objective_s: float) -> float:
    """How many workers there should be, of `workers` that there are; not rounded."""
    late = max(0.0, wait_s - objective_s / 2)
    return use.scarcest * growth / TARGET + workers * late / HORIZON
