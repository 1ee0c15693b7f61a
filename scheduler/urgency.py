"""Room kept for a high priority while such requests come: short steps, and a row that is vacant already.

A request that arrives waits for the steps in flight before its own. What those take is decided before it
comes, so while any request of a higher priority began in the last LATELY steps, the others keep to this:

    CALM_TOKENS    of prompts in a step at most, those of the high priority included
    SPARE_ROWS     stay vacant; what must be paused first is free only when the steps in flight are answered
"""

LATELY = 4096  # steps
CALM_TOKENS = 256
SPARE_ROWS = 2


class Urgency:
    """Which priorities occur, on one worker."""

    def __init__(self, max_rows: int) -> None:
        self._last: dict[int, int] = {}  # priority: the last step in which a request of it began
        self._spare = min(SPARE_ROWS, max_rows // 8)

    def began(self, priority: int, step: int) -> None:
        """A request of `priority` gets its row in `step`."""
        if self._last.get(priority, 0) + LATELY < step:
            self._last = {each: last for each, last in self._last.items() if last + LATELY >= step}
        self._last[priority] = step

    def prompt_tokens(self, priority: int, step: int, budget: int) -> int:
        """Of `budget`, how many may have been given in all once `priority` has got its chunk."""
        return min(budget, CALM_TOKENS) if self._higher(priority, step) else budget

    def spare_rows(self, priority: int, step: int) -> int:
        """Rows that `priority` leaves vacant."""
        return self._spare if self._higher(priority, step) else 0

    def _higher(self, priority: int, step: int) -> bool:
        return any(other > priority and last + LATELY >= step for other, last in self._last.items())
