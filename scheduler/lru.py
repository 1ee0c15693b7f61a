"""What was used longest ago, in O(1)."""


class LruList:
    """A doubly linked list over the integers 0 .. size - 1, each at most once, from oldest to newest."""

    def __init__(self, size: int) -> None:
        self._head = size  # the sentinel: its next is the oldest, its previous the newest
        self._next = [-1] * size + [size]
        self._prev = [-1] * size + [size]
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __contains__(self, item: int) -> bool:
        return self._next[item] >= 0

    @property
    def oldest(self) -> int:
        """The oldest. Needs one."""
        return self._next[self._head]

    def append(self, item: int) -> None:
        """Adds `item` as the newest."""
        self._insert(self._prev[self._head], item)

    def prepend(self, item: int) -> None:
        """Adds `item` as the oldest."""
        self._insert(self._head, item)

    def remove(self, item: int) -> None:
        """Takes `item`, which is in here, out."""
        before, after = self._prev[item], self._next[item]
        self._next[before], self._prev[after] = after, before
        self._next[item] = self._prev[item] = -1
        self._length -= 1

    def pop_oldest(self) -> int:
        """Takes the oldest out. Needs one."""
        item = self.oldest
        self.remove(item)
        return item

    def _insert(self, before: int, item: int) -> None:
        after = self._next[before]
        self._next[before] = self._prev[after] = item
        self._prev[item], self._next[item] = before, after
        self._length += 1
