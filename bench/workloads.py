"""What load tests ask for: seven workloads, the same requests for the same seed.

| workload | prompt and answer, in tokens |
|---|---|
| mixed | 100 to 1024 each, uniform |
| decode | 128 in, 512 out |
| prefill | 8192 in, 1 out |
| long | 32,000 in, 256 out |
| chat | lognormal, mean 220 in and 200 out; temperature 0.7, top-p 0.95 |
| faq | one system prompt of 2048 shared by all and 64 of one's own in, 128 out |
| tenants | 32 such system prompts and 64 of one's own in, 64 out |

Prompts are random token ids, so no tokenizer takes part. All but `chat` are greedy.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from random import Random

LOWEST_ID, END_ID = 1000, 30000  # inside the vocabulary of every model we measure

GREEDY: Mapping[str, float] = {"temperature": 0}
SAMPLED: Mapping[str, float] = {"temperature": 0.7, "top_p": 0.95}

SYSTEM_PROMPT, QUESTION = 2048, 64  # tokens
TENANTS = 32


@dataclass(frozen=True, slots=True)
class Request:
    """One request: token ids, the length of the answer in tokens, and sampling as the API names it."""

    prompt: list[int]
    max_tokens: int
    sampling: Mapping[str, float]

    def scaled(self, factor: float) -> "Request":
        """With prompt and answer `factor` times as long, at least a token each."""
        length = max(1, int(len(self.prompt) * factor))
        max_tokens = max(1, int(self.max_tokens * factor))
        return replace(self, prompt=self.prompt[:length], max_tokens=max_tokens)


def make_requests(workload: str, count: int, seed: int) -> list[Request]:
    """The first `count` requests of a workload. Raises KeyError for an unknown one."""
    make = WORKLOADS[workload](Random(seed))
    return [make() for _ in range(count)]


def arrival_times(rate: float, count: int, seed: int) -> list[float]:
    """Seconds of `count` Poisson arrivals, `rate` a second, the first at 0; with rate 0, all at once."""
    rng = Random(seed + 1)
    times = [0.0]
    while len(times) < count:
        times.append(times[-1] + rng.expovariate(rate) if rate else 0.0)
    return times[:count]


# In what follows the order of the draws is what makes a seed mean the same requests everywhere.


def _ids(rng: Random, count: int) -> list[int]:
    return [rng.randrange(LOWEST_ID, END_ID) for _ in range(count)]


def _mixed(rng: Random) -> Callable[[], Request]:
    def make() -> Request:
        prompt = _ids(rng, rng.randint(100, 1024))
        return Request(prompt, rng.randint(100, 1024), GREEDY)

    return make


def _fixed(prompt_len: int, max_tokens: int) -> Callable[[Random], Callable[[], Request]]:
    return lambda rng: lambda: Request(_ids(rng, prompt_len), max_tokens, GREEDY)


def _chat(rng: Random) -> Callable[[], Request]:
    def lognormal(mean: float, sigma: float, most: int) -> int:
        return max(8, min(most, int(rng.lognormvariate(math.log(mean) - sigma**2 / 2, sigma))))

    def make() -> Request:
        prompt = _ids(rng, lognormal(220, 1.0, 4096))
        return Request(prompt, lognormal(200, 0.8, 1024), SAMPLED)

    return make


def _faq(rng: Random) -> Callable[[], Request]:
    system = _ids(rng, SYSTEM_PROMPT)
    return lambda: Request(system + _ids(rng, QUESTION), 128, GREEDY)


def _tenants(rng: Random) -> Callable[[], Request]:
    systems = [_ids(rng, SYSTEM_PROMPT) for _ in range(TENANTS)]
    return lambda: Request(rng.choice(systems) + _ids(rng, QUESTION), 64, GREEDY)


WORKLOADS: Mapping[str, Callable[[Random], Callable[[], Request]]] = {
    "mixed": _mixed,
    "decode": _fixed(128, 512),
    "prefill": _fixed(8192, 1),
    "long": _fixed(32000, 256),
    "chat": _chat,
    "faq": _faq,
    "tenants": _tenants,
}
