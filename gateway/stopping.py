"""Stop strings, found as the text comes, whatever chunks it comes in."""

from collections.abc import Sequence


class _Matcher:
    """Knuth, Morris and Pratt's automaton for one string: constant time per character, amortised."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.matched = 0  # characters of the pattern that the text so far ends with
        self._fallback = [0] * len(pattern)  # by characters matched: how many match after a mismatch
        length = 0
        for at in range(1, len(pattern)):
            self._fallback[at] = length
            while length and pattern[at] != pattern[length]:
                length = self._fallback[length]
            length += pattern[at] == pattern[length]
        self._after_match = length

    def find(self, text: str, armed: bool) -> int | None:
        """Reads `text`; where it first completes the pattern, if `armed`. Else reads on to the end."""
        at = 0
        while at < len(text):
            if not self.matched:  # the usual case, at the speed of C
                at = text.find(self.pattern[0], at)
                if at < 0:
                    return None
            while self.matched and text[at] != self.pattern[self.matched]:
                self.matched = self._fallback[self.matched]
            self.matched += text[at] == self.pattern[self.matched]
            at += 1
            if self.matched == len(self.pattern):
                if armed:
                    return at
                self.matched = self._after_match
        return None


class StopStrings:
    """Cuts a text at the first stop string that it completes.

    Of several that are complete at the same character, the first in the list counts, as in vLLM. Text that
    may yet turn out to begin a stop string is held back, and no more than that.
    """

    def __init__(self, stops: Sequence[str], include: bool) -> None:
        """`include` leaves the stop string in the text. Raises ValueError for an empty stop string."""
        if not all(stops):
            raise ValueError("a stop string cannot be empty")
        self._matchers = [_Matcher(stop) for stop in stops]
        self._include = include
        self._held = ""

    def add(self, text: str, armed: bool = True) -> tuple[str, str | None]:
        """Takes new text; returns what may be shown, and the stop string that ends the text, if one does.

        A stop string must end in text given with `armed`, but may begin before it. Nothing may be added after
        one is found.
        """
        if not self._matchers:
            return text, None
        found = [(matcher.find(text, armed), order) for order, matcher in enumerate(self._matchers)]
        complete = [(end, order) for end, order in found if end is not None]
        text = self._held + text
        if complete:
            end, order = min(complete)
            stop = self._matchers[order].pattern
            end += len(self._held)
            self._held = ""
            return text[: end if self._include else end - len(stop)], stop
        if self._include:
            return text, None
        shown = len(text) - max(matcher.matched for matcher in self._matchers)
        self._held = text[shown:]
        return text[:shown], None

    def flush(self) -> str:
        """At the end: what was held back, for it was no stop string after all."""
        held, self._held = self._held, ""
        return held
