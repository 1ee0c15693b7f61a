"""A request as the scheduler knows it: token ids, limits, and what has become of it."""

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from opentelemetry.trace import SpanContext

from prefix_cache import hashing
from prefix_cache.hashing import Digest
from protos.sampling_pb2 import Sampling

if TYPE_CHECKING:
    from scheduler.lane import Lane
    from scheduler.session import Session

Tokens = npt.NDArray[np.int32]


@dataclass(slots=True, eq=False)
class Request:
    """One answer in the making. While it runs, its tokens live in its row; while it waits, here.

    tokens       [n] int32: the prompt and what has been answered so far
    max_tokens   of the answer
    arrival      orders the queue: a request that lost its row comes back to its old place
    """

    session: "Session"
    id: int
    request_id: str
    tokens: Tokens
    prompt_len: int
    max_tokens: int
    sampling: Sampling
    stop_ids: frozenset[int]
    cache_salt: str
    traceparent: str
    parent: SpanContext | None
    arrival: int
    queued_at_ns: int = field(default_factory=time.time_ns)
    started: bool = False
    preemptions: int = 0
    cancelled: bool = False
    lane: "Lane | None" = None  # the worker it was given to
    row: int | None = None  # and its row there
    digests: list[Digest] = field(default_factory=list)  # of its full blocks, as far as they are hashed
    hashed_size: int = 0  # tokens in each of these blocks

    @property
    def limit(self) -> int:
        """Tokens of prompt and answer together."""
        return self.prompt_len + self.max_tokens

    @property
    def reads_prompt_logits(self) -> bool:
        """Whether every prompt token must be computed, cached or not."""
        return self.sampling.HasField("prompt_logprobs")

    def lost_row(self, tokens: Tokens) -> None:
        """It waits again, with the `tokens` it has by now."""
        self.row = None
        self.tokens = tokens
        if len(tokens) > self.prompt_len:
            # The prompt has been scored, so next time it may come from the cache.
            self.sampling.ClearField("prompt_logprobs")

    def hash_blocks(self, tokens: Tokens, block_size: int) -> None:
        """Extends `digests` over the full blocks of `tokens`, of which those hashed already are a prefix."""
        if block_size != self.hashed_size:  # a worker with other blocks: those digests mean nothing there
            self.digests.clear()
            self.hashed_size = block_size
        done = len(self.digests)
        parent = self.digests[-1] if done else hashing.root(self.cache_salt)
        self.digests.extend(hashing.chain(parent, tokens[done * block_size :], block_size))
