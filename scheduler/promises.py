"""Prefixes that a worker has been asked to compute, and that its index does not know yet.

Without them, requests that come together with one new prefix would be sent to as many workers.
"""

from prefix_cache.hashing import Digest
from scheduler.request import Request


class Promises:
    """Digests by how many requests are about to fill a block with them."""

    def __init__(self) -> None:
        self._counts: dict[Digest, int] = {}
        self._made: dict[Request, list[Digest]] = {}

    def __contains__(self, digest: object) -> bool:
        return digest in self._counts

    def __len__(self) -> int:
        return len(self._made)

    def make(self, request: Request, digests: list[Digest]) -> None:
        """`request`, of which no promise stands, will fill blocks with `digests`."""
        self._made[request] = digests
        for digest in digests:
            self._counts[digest] = self._counts.get(digest, 0) + 1

    def drop(self, request: Request) -> None:
        """The index knows them by now, or nobody will compute them. Without a promise nothing happens."""
        for digest in self._made.pop(request, ()):
            if self._counts[digest] == 1:
                del self._counts[digest]
            else:
                self._counts[digest] -= 1

    def requests(self) -> list[Request]:
        """Whose promises stand."""
        return list(self._made)
