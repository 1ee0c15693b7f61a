"""The cache that all caches together could be: one LRU that serves requests one by one."""

from collections import OrderedDict
from collections.abc import Hashable, Sequence


class IdealCache:
    """No answer takes room in it, nobody's blocks are held while others come, and tails go before heads."""

    def __init__(self, blocks: int) -> None:
        """Room for so many."""
        self._room = blocks
        self._blocks: OrderedDict[Hashable, None] = OrderedDict()

    def visit(self, chain: Sequence[Hashable]) -> int:
        """How many leading blocks of a prompt are there; all of them are afterwards, as far as they fit."""
        known = next((n for n, block in enumerate(chain) if block not in self._blocks), len(chain))
        for block in reversed(chain):
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > self._room:
            self._blocks.popitem(last=False)
        return known
