"""What may go wrong with a fault itself."""


class NobodyActive(Exception):
    """No scheduler says that it is the active one."""


class Unexpected(Exception):
    """A fault had another effect than it must have."""
