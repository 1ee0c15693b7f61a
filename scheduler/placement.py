"""Which worker gets a request: the one where it costs least.

    cost(worker) = (COMPUTE * (uncached + loading) + queued + ROW * rows + CONTEXT * context + EVICT * evicted
                    + WAIT * short) / weight

in tokens of prefill: the time in which a worker of weight 1 computes one prompt token, some 28 µs for 8
billion parameters on an H200. So a cost is a time, and no worker's speed has to be guessed: one of weight 2
is said to be twice as fast. All of it is exact.

    uncached   prompt tokens it would compute there. They delay its first token, and whoever comes after it
               on that worker: COMPUTE is more than 1, so that a prefix somebody is about to compute is waited
               for rather than computed twice; and not much more, so that a hot prefix is computed again on
               an idle worker before its first one is buried
    loading    the time to bring blocks of the prompt from the worker's host memory, as the tokens computed in
               it: about a tenth of what these blocks hold
    queued     prompt tokens it must wait for: of requests given to the worker, of rows in their prompt
    rows       requests beside it, which share every step with it for a while (128 steps at half a token)
    context    tokens in blocks in use, which every step of that while reads
    evicted    tokens that it would push out of the cache, some of which somebody will miss
    short      tokens that have no block until somebody ends
"""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from scheduler.lane import Lane
from scheduler.load import Load
from scheduler.request import Request

COMPUTE = 3.0
ROW = 64.0
CONTEXT = 1 / 8
EVICT = 1 / 4
WAIT = 4.0


def cost(load: Load, weight: float = 1.0) -> float:
    """What a request costs on a worker of this weight, in tokens of prefill."""
    return (
        COMPUTE * (load.uncached + load.loading)
        + load.queued
        + ROW * load.rows
        + CONTEXT * load.context
        + EVICT * load.evicted
        + WAIT * load.short
    ) / weight


W = TypeVar("W")


def cheapest(
    bounds: Sequence[tuple[W, Load]], exact: Callable[[W], Load], weight: Callable[[W], float]
) -> tuple[W, Load]:
    """The worker whose exact load costs least, the first of equals, and that load.

    `bounds` are loads that cost no more than the exact ones; only those that look best are asked exactly.
    """
    weights = [weight(worker) for worker, _ in bounds]
    loads = dict(enumerate(load for _, load in bounds))
    known: set[int] = set()
    while True:
        best = min(loads, key=lambda n: cost(loads[n], weights[n]))
        if best in known:
            return bounds[best][0], loads[best]
        loads[best] = exact(bounds[best][0])
        known.add(best)


class Placement(Protocol):
    """How a scheduler with several workers chooses."""

    def choose(self, request: Request, lanes: Sequence[Lane]) -> tuple[Lane, Load] | None:
        """One of `lanes`, which are connected, and what it has for `request`; None to wait for now."""
        ...


class LeastCost:
    """The placement described above. A worker that has enough to do already is left alone."""

    def choose(self, request: Request, lanes: Sequence[Lane]) -> tuple[Lane, Load] | None:
        """See `Placement`."""
        bounds = []
        guess = len(request.tokens)
        for lane in lanes:
            if lane.wants(request):
                load = lane.load_bound(request, guess)
                guess = load.uncached  # most workers have the same: nothing, or what all requests begin with
                bounds.append((lane, load))
        if not bounds:
            return None
        return cheapest(bounds, lambda lane: lane.load_for(request), lambda lane: lane.weight)
