"""When the tokens of one answer came."""


class AnswerTimes:
    """From its first piece on. Times are seconds of `time.perf_counter`."""

    __slots__ = ("_first", "_first_tokens", "last", "tokens")

    def __init__(self, now: float, tokens: int) -> None:
        """The first piece, of so many tokens, comes now."""
        self._first = self.last = now
        self._first_tokens = self.tokens = tokens

    def piece(self, now: float, tokens: int) -> float:
        """Another piece of so many tokens comes now: seconds since the one before, per token."""
        gap = (now - self.last) / tokens
        self.last = now
        self.tokens += tokens
        return gap

    @property
    def per_token(self) -> float | None:
        """Mean seconds of a token that came after the first piece; None where none did."""
        after = self.tokens - self._first_tokens
        return (self.last - self._first) / after if after else None
