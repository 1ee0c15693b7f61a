"""What a request would find on one worker, were it sent there now."""

from scheduler.batcher import Batcher
from scheduler.load import Load
from scheduler.promises import Promises
from scheduler.queue import WaitingQueue
from scheduler.request import Request


class Outlook:
    """Reads the worker's books, and remembers what it has been promised to compute."""

    def __init__(self, batcher: Batcher, waiting: WaitingQueue, *, caching: bool) -> None:
        """`waiting` are the requests given to the worker that have no row yet."""
        self._batcher = batcher
        self._waiting = waiting
        self._caching = caching
        self._block_size = batcher.rows.block_size
        self._promises = Promises()

    def bound(self, request: Request, guess: int) -> Load:
        """As `exact`, found faster, most so if `guess` tokens are uncached, and never costlier.

        Where the index has a hole `uncached` may be too low, and what comes from the host counts as loaded.
        """
        index, host = self._batcher.pool.index, self._batcher.tiers.host
        elsewhere = (self._promises, host) if host.num_blocks else (self._promises,)
        blocks = (len(request.tokens) - guess) // self._block_size
        known = index.bound(request.digests, self._reusable(request), elsewhere, blocks)
        return self._load(request, known, 0)

    def exact(self, request: Request) -> Load:
        """Walks the whole chain, block by block."""
        prefix = self._batcher.entrance.find(request)
        known = len(prefix.head) + len(prefix.rest)
        for digest in request.digests[known : self._reusable(request)]:
            if digest not in self._promises:
                break
            known += 1
        return self._load(request, known, prefix.num_loads)

    def expect(self, request: Request, load: Load) -> None:
        """`request`, which finds `load`, will be computed here: others may count on its blocks."""
        known = (len(request.tokens) - load.uncached) // self._block_size
        if new := request.digests[known : self._reusable(request)]:
            self._promises.make(request, new)

    def forget(self, request: Request) -> None:
        """`request` will not be computed here. What nobody expected is ignored."""
        self._promises.drop(request)

    def composed(self) -> None:
        """A step has prompts in it: those composed to their ends are in the index now, and no promise."""
        if not self._promises:
            return
        computed = self._batcher.rows.computed
        for request in self._promises.requests():
            if request.row is not None and computed[request.row] >= len(request.tokens):
                self._promises.drop(request)

    def _reusable(self, request: Request) -> int:
        return request.reusable(self._block_size) if self._caching else 0

    def _load(self, request: Request, known: int, loads: int) -> Load:
        batcher, size = self._batcher, self._block_size
        return Load(
            uncached=len(request.tokens) - known * size,
            loaded=loads * size,
            loading=batcher.tiers.costs.tokens_worth(loads),
            queued=self._waiting.work + batcher.backlog,
            rows=batcher.rows.taken + len(self._waiting),
            context=batcher.pool.held * size,
            free=batcher.pool.free * size,
            available=batcher.pool.available * size,
        )
