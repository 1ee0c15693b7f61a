"""When to send a worker its next step: early enough that it never waits for the network, and no earlier.

The hop's tail is longer than a small model's step, so a number of steps is not enough: there must be some
milliseconds of work too, on top of what the way to the worker and back takes. More than that is not better:
what is in flight can no longer be changed, and who arrives now waits until it is done. So of steps that take
long the next one is held back until the one before it is nearly over, as far as can be told.
"""

import math
from collections import deque

WORK_IN_FLIGHT_US = 3_000
MOST_STEPS = 8
_WEIGHT = 0.1  # of the newest step in the running means
_LEFT_US = 2_000  # of the work in flight, on top of the hop, when a step that was held back is sent
# Of what a step is expected to take. One that ends sooner than expected is followed by a pause of one hop.
_CAUTION = 0.9
_ENOUGH_TOKENS = 64  # of prompts, from which a step tells what one takes
_SHORTEST_S = 0.0005  # to hold a step back: timers are no more exact


class Pacing:
    """Follows how long steps keep the worker busy, and how long the hop takes. Times are in seconds."""

    def __init__(self, least: int) -> None:
        """`least` steps are in flight whatever they take; 1 is synchronous, and stays so."""
        self._least = least
        self._busy_us = float(WORK_IN_FLIGHT_US)
        self._hop_us = 0.0
        self._decode_us = 0.0  # of a step without prompts
        self._prompt_token_us = 0.0
        self._in_flight: deque[tuple[int, float]] = deque()  # prompt tokens, expected microseconds
        self._over_at = 0.0  # when all of it is expected to be done

    def sent(self, prompt_tokens: int, now: float) -> None:
        """A step left, with so many tokens of prompts in it."""
        expected = _CAUTION * (self._decode_us + prompt_tokens * self._prompt_token_us)
        self._in_flight.append((prompt_tokens, expected))
        self._over_at = max(self._over_at, now) + expected / 1e6

    def answered(self, busy_us: int, hop_us: float, now: float) -> None:
        """The oldest step kept the worker busy, and was on its way there and back, for so long."""
        prompt_tokens, _ = self._in_flight.popleft()
        self._over_at = now + sum(expected for _, expected in self._in_flight) / 1e6
        self._busy_us += _WEIGHT * (max(busy_us, 1) - self._busy_us)
        self._hop_us += _WEIGHT * (max(hop_us, 0.0) - self._hop_us)
        if not prompt_tokens:
            # Rows leave at once and come one by one: it may get shorter at once, but longer only slowly.
            self._decode_us = min(busy_us, self._decode_us + _WEIGHT * (busy_us - self._decode_us))
        elif prompt_tokens >= _ENOUGH_TOKENS:
            each = max(0.0, busy_us - self._decode_us) / prompt_tokens
            self._prompt_token_us = min(
                each, self._prompt_token_us + _WEIGHT * (each - self._prompt_token_us)
            )

    @property
    def depth(self) -> int:
        """The most steps to have in flight."""
        if self._least == 1:
            return 1
        wanted = (WORK_IN_FLIGHT_US + self._hop_us) / self._busy_us
        # One more than make up the time: the oldest may be about to end.
        return max(self._least, min(MOST_STEPS, math.ceil(wanted) + 1))

    def hold_back(self, now: float) -> float:
        """Seconds for which the next step is better not sent yet; 0 when it is time."""
        if not self._in_flight:
            return 0.0
        wait = self._over_at - (_LEFT_US + self._hop_us) / 1e6 - now
        return wait if wait >= _SHORTEST_S else 0.0
