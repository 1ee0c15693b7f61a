"""What may go wrong with a fault itself."""


class Unexpected(Exception):
    """A fault had another effect than it must have."""
