"""How many a second, lately."""

_SLOT_S = 0.25
_WHOLE = 8  # slots that count, before the one that is being filled: that says little yet


class Meter:
    """A mean over the last two seconds, in slots, so that it costs the same however much is counted."""

    def __init__(self) -> None:
        self._counts = [0] * (_WHOLE + 1)  # of slot n at n modulo the length
        self._slot = 0  # the last one

    def count(self, number: int, now: float) -> None:
        """So many happened. `now` is in seconds and never falls."""
        slot = int(now / _SLOT_S)
        for passed in range(max(self._slot + 1, slot - _WHOLE), slot + 1):
            self._counts[passed % len(self._counts)] = 0
        self._slot = slot
        self._counts[slot % len(self._counts)] += number

    def per_second(self, now: float) -> float:
        """Changes nothing: any thread may ask."""
        slot = int(now / _SLOT_S)
        whole = range(max(slot, self._slot) - _WHOLE, min(slot, self._slot + 1))
        return sum(self._counts[past % len(self._counts)] for past in whole) / (_WHOLE * _SLOT_S)
