"""Names that others choose, as label values: so many, and no more, or a series would be made for each."""

OTHERS = "(others)"
MOST_TENANTS = 100  # per process


class BoundedNames:
    """The first `most` names have a label value of their own for good, those that come later share one.

    For good, because a counter that moved to another label would fall, which Prometheus takes for a restart.
    """

    def __init__(self, most: int = MOST_TENANTS) -> None:
        self._most = most
        self._known: set[str] = set()

    def label(self, name: str) -> str:
        """`name`, or OTHERS."""
        if name not in self._known:
            if len(self._known) >= self._most:
                return OTHERS
            self._known.add(name)
        return name
