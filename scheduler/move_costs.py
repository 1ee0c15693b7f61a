"""Whether bringing blocks back from host memory is cheaper than computing their tokens again.

    loading    = ROUND_TRIP_US + blocks * (µs to load a block)
    computing  = blocks * block_size * (µs to compute a token)

Both rates are running means of what the worker tells: of its loads, and of steps at least half full, in which
a token costs what it costs in prefill (a step of few tokens takes as long as reading the weights does). Until
there is something to go by loading pays, as it does on every GPU there is: 16 tokens of an 8B model in
bfloat16 are 2 MiB, 40 µs over PCIe 5, and take about 0.4 ms to compute.
"""

ROUND_TRIP_US = 2_000  # what waits for a load misses about a step
LOAD_SHARE = 0.1  # of the time to compute a block, to load it: until the worker has told
_WEIGHT = 0.1  # of the newest observation in a running mean


class MoveCosts:
    """Of one worker."""

    def __init__(self, block_size: int, budget: int) -> None:
        """`budget` is the most tokens in a step."""
        self._block_size = block_size
        self._budget = budget
        self._load_us: float | None = None  # per block
        self._token_us: float | None = None

    def observe_step(self, num_tokens: int, busy_us: int) -> None:
        """A step of `num_tokens` kept the worker busy for so many microseconds."""
        if 2 * num_tokens >= self._budget and busy_us:
            self._token_us = _mean(self._token_us, busy_us / num_tokens)

    def observe_loads(self, num_blocks: int, took_us: int) -> None:
        """`num_blocks` were loaded in so many microseconds."""
        self._load_us = _mean(self._load_us, took_us / num_blocks)

    def loading_pays(self, num_blocks: int) -> bool:
        """Whether to load `num_blocks` rather than to compute what they hold."""
        if self._token_us is None or self._load_us is None:
            return True
        loading = ROUND_TRIP_US + num_blocks * self._load_us
        return loading < num_blocks * self._block_size * self._token_us

    def tokens_worth(self, num_blocks: int) -> float:
        """How many tokens could be computed in the time that loading `num_blocks` takes."""
        if self._token_us is None or self._load_us is None:
            return LOAD_SHARE * num_blocks * self._block_size
        return num_blocks * self._load_us / self._token_us


def _mean(mean: float | None, value: float) -> float:
    return value if mean is None else mean + _WEIGHT * (value - mean)
