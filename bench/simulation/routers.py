"""How others choose a worker, for comparison. Each knows what a router in front of engines knows.

They choose as soon as a request comes, and never again: a router has no queue of its own.
"""

import random
from collections import OrderedDict
from collections.abc import Sequence

from prefix_cache.hashing import Digest
from scheduler.lane import Lane
from scheduler.load import Load
from scheduler.request import Request


class RoundRobin:
    """One after another."""

    def __init__(self) -> None:
        self._next = 0

    def choose(self, request: Request, lanes: Sequence[Lane]) -> tuple[Lane, Load]:
        """Whose turn it is."""
        self._next += 1
        return _with_load(lanes[self._next % len(lanes)], request)


class Random:
    """Anyone."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)

    def choose(self, request: Request, lanes: Sequence[Lane]) -> tuple[Lane, Load]:
        """Anyone."""
        return _with_load(self._random.choice(lanes), request)


class ApproximatePrefix:
    """Remembers where it sent which prefix, since it is not told what engines keep: AIBrix's rule.

    The longest match among workers whose requests are not far above the mean (mean + 2 sigma); the fewest
    requests where they differ by more than 16. It remembers 31,250 blocks a worker, as llm-d's does.
    """

    REMEMBERED = 31_250
    IMBALANCE = 16

    def __init__(self) -> None:
        self._sent: dict[Lane, OrderedDict[Digest, None]] = {}

    def choose(self, request: Request, lanes: Sequence[Lane]) -> tuple[Lane, Load]:
        """See above."""
        running = {lane: _requests(lane) for lane in lanes}
        count = request.reusable(16)
        digests = request.digests[:count]
        if max(running.values()) - min(running.values()) > self.IMBALANCE:
            chosen = min(lanes, key=running.__getitem__)
        else:
            mean = sum(running.values()) / len(lanes)
            sigma = (sum((n - mean) ** 2 for n in running.values()) / len(lanes)) ** 0.5
            able = [lane for lane in lanes if running[lane] <= mean + 2 * sigma]
            chosen = max(able, key=lambda lane: (self._match(lane, digests), -running[lane]))
        self._remember(chosen, digests)
        return _with_load(chosen, request)

    def _match(self, lane: Lane, digests: Sequence[Digest]) -> int:
        sent = self._sent.get(lane, OrderedDict())
        return next((n for n, digest in enumerate(digests) if digest not in sent), len(digests))

    def _remember(self, lane: Lane, digests: Sequence[Digest]) -> None:
        sent = self._sent.setdefault(lane, OrderedDict())
        for digest in reversed(digests):
            sent[digest] = None
            sent.move_to_end(digest)
        while len(sent) > self.REMEMBERED:
            sent.popitem(last=False)


class ExactPrefix:
    """Knows exactly what engines keep, and how much they have to do: Dynamo's cost.

    prefill blocks (active and incoming, less the overlap) + decode blocks (active and incoming)
    """

    def choose(self, request: Request, lanes: Sequence[Lane]) -> tuple[Lane, Load]:
        """The least cost."""
        return _with_load(min(lanes, key=lambda lane: self._cost(request, lane)), request)

    def _cost(self, request: Request, lane: Lane) -> float:
        load = lane.load_for(request)
        return load.queued + load.uncached + load.context + len(request.tokens)


def _with_load(lane: Lane, request: Request) -> tuple[Lane, Load]:
    return lane, lane.load_for(request)


def _requests(lane: Lane) -> int:
    return len(lane.waiting) + (lane.batcher.rows.taken if lane.batcher else 0)
