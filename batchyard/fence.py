"""Fences: by which number the active scheduler of several outranks all that were active before it.

A fence grows with every change of the active scheduler. It is in the metadata of the streams that a scheduler
opens to workers, which refuse one lower than they have seen, and of those that gateways have opened to it.
See M. Kleppmann, "How to do distributed locking", 2016, on fencing tokens.
"""

from collections.abc import Iterable

KEY = "batchyard-fence"


def metadata(fence: int) -> tuple[tuple[str, str], ...]:
    """gRPC metadata that says `fence`."""
    return ((KEY, str(fence)),)


def fence_in(metadata: Iterable[tuple[str, str | bytes]] | None) -> int | None:
    """The fence in gRPC metadata; None where there is none."""
    for key, value in metadata or ():
        if key == KEY and isinstance(value, str) and value.isdecimal():
            return int(value)
    return None
