"""When requests are sent in an open loop, whatever the answers take."""

import numpy as np


def arrival_times(rate: float, burstiness: float, count: int, seed: int) -> list[float]:
    """Seconds of `count` arrivals, `rate` a second on average, the first at 0.

    Times between are gamma distributed with mean 1 / rate and `burstiness` times an exponential's standard
    deviation: 1 is a Poisson process, above it requests come in bursts, near 0 like clockwork.
    """
    rng = np.random.default_rng([seed, 0xA221])
    if burstiness == 0:
        gaps = np.full(count - 1, 1 / rate)
    else:
        shape = burstiness**-2
        gaps = rng.gamma(shape, 1 / (rate * shape), count - 1)
    return [0.0, *map(float, np.cumsum(gaps))]
