"""A request as the scheduler knows it: token ids, limits, and what has become of it."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from prefix_cache import hashing
from prefix_cache.hashing import Digest
from protos.sampling_pb2 import Sampling
from scheduler.fairness import Tenant
from scheduler.prompt_log import PromptLog
from scheduler.timeline import Timeline

if TYPE_CHECKING:
    from scheduler.lane import Lane
    from scheduler.session import Session
    from scheduler.suspects import Suspicion

Tokens = npt.NDArray[np.int32]


@dataclass(slots=True, eq=False)
class Request:
    """One answer in the making. While it runs, its tokens live in its row; while it waits, here.

    tokens       [n] int32: the prompt and what has been answered so far
    max_tokens   of the answer
    arrival      orders the queue: a request that lost its row comes back to its old place
    arrived      when it came, and
    deadline     when it ends, done or not, by the scheduler's clock in seconds
    began_at     by the same clock: when it got its first row here, and
    first_token_at   its first token
    priority     higher goes first, in here: what a submit says is lower for the more urgent
    paid         leading tokens that its tenant has been charged for: what is computed again costs no more
    work         tokens to compute before it decodes, where it was sent; all of them while that is open
    suspicion    that it kills workers: see `suspects`
    timeline     where its time goes
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
    arrival: int
    started: bool = False
    loaded: int = 0  # leading tokens brought from host memory since it waits
    cancelled: bool = False
    lane: "Lane | None" = None  # the worker it was given to
    row: int | None = None  # and its row there
    pinned: bool = False  # to that worker: elsewhere it would be of no use
    digests: list[Digest] = field(default_factory=list)  # of its full blocks, as far as they are hashed
    hashed_size: int = 0  # tokens in each of these blocks
    work: int = -1
    tenant: Tenant = field(default_factory=Tenant)
    priority: int = 0
    arrived: float = 0.0
    deadline: float = math.inf
    began_at: float | None = None
    first_token_at: float | None = None
    paid: int = 0
    suspicion: "Suspicion | None" = None
    timeline: Timeline = field(default_factory=Timeline)

    def __post_init__(self) -> None:
        self.work = len(self.tokens)

    @property
    def limit(self) -> int:
        """Tokens of prompt and answer together."""
        return self.prompt_len + self.max_tokens

    @property
    def preemptions(self) -> int:
        """How often it lost its row to others."""
        return self.timeline.preemptions

    @property
    def reads_prompt_logits(self) -> bool:
        """Whether every prompt token must be computed, cached or not."""
        return self.sampling.HasField("prompt_logprobs")

    def goes_on(self) -> None:
        """It ran before, elsewhere, as its answer so far shows: it is like one that lost its row."""
        self.started = True
        self.paid = len(self.tokens)

    def got_row(
        self, row: int, device_tokens: int, host_tokens: int, looked_ns: int, prompts: PromptLog
    ) -> None:
        """It runs in `row`: see `Timeline.got_row`."""
        self.row = row
        worker = self.lane.name if self.lane else ""
        self.timeline.got_row(worker, device_tokens, host_tokens, looked_ns, prompts)

    def lost_row(self, tokens: Tokens) -> None:
        """It waits again, with the `tokens` it has by now."""
        self.row = None
        self.loaded = 0
        self.tokens = tokens
        self.work = len(tokens)
        if len(tokens) > self.prompt_len:
            # The prompt has been scored, so next time it may come from the cache.
            self.sampling.ClearField("prompt_logprobs")

    def reusable(self, block_size: int) -> int:
        """How many leading blocks may come from a cache: the first so many of `digests`."""
        if self.reads_prompt_logits:
            return 0
        self.hash_blocks(self.tokens, block_size)
        # One token at least is computed, or there would be nothing to sample from.
        return (len(self.tokens) - 1) // block_size

    def hash_some(self, block_size: int, blocks: int) -> bool:
        """Hashes so many blocks more of the tokens. Whether all full ones are hashed now."""
        done = len(self.digests) if self.hashed_size == block_size else 0
        self.hash_blocks(self.tokens[: (done + blocks) * block_size], block_size)
        return len(self.digests) == len(self.tokens) // block_size

    def hash_blocks(self, tokens: Tokens, block_size: int) -> None:
        """Extends `digests` over the full blocks of `tokens`, of which those hashed already are a prefix."""
        if block_size != self.hashed_size:  # a worker with other blocks: those digests mean nothing there
            self.digests.clear()
            self.hashed_size = block_size
        done = len(self.digests)
        if len(tokens) < (done + 1) * block_size:
            return
        parent = self.digests[-1] if done else hashing.root(self.cache_salt)
        self.digests.extend(hashing.chain(parent, tokens[done * block_size :], block_size))
