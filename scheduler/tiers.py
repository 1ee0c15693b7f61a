"""The two tiers of one worker's cache, the device's blocks and the host's below them, and the moves between.

Blocks move down ahead of need: whenever few blocks are left that can be given away without loss, those used
longest ago are saved. They stay in the cache while that goes on and until they are evicted, so no step ever
waits for a save. Only a decode that needs a block at once evicts one that has no copy.

They come back for a request that waits, when its beginning goes on there and loading pays (`MoveCosts`). It
is set aside until the worker says that they have arrived, and those behind it go on. Others with the same
beginning wait for the same load. What has arrived is cached as if it had been computed.

A request that was preempted left its full blocks in the cache like any other. So it is swapped out and in by
the same moves, when that pays, and computed again when not.
"""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from prefix_cache.hashing import Digest
from protos.packing import pack_i32
from protos.step_pb2 import Moved, StepBatch
from scheduler.block_pool import BlockPool
from scheduler.host_pool import HostPool
from scheduler.move_costs import MoveCosts


@dataclass(frozen=True, slots=True)
class Prefix:
    """What is known of a sequence of blocks: those on the device at its beginning, and what follows them.

    rest      digests that follow, with their blocks where these are on the device and None where on the host
    awaited   the step whose loads bring some of the rest, 0 if none are on their way
    """

    head: list[int]
    rest: Sequence[tuple[Digest, int | None]] = ()
    awaited: int = 0

    @property
    def on_device(self) -> list[int]:
        """Blocks that need no load."""
        return self.head + [block for _, block in self.rest if block is not None]

    @property
    def length(self) -> int:
        """Blocks in all."""
        return len(self.head) + len(self.rest)

    @property
    def num_loads(self) -> int:
        """Blocks that do."""
        return sum(block is None for _, block in self.rest)


@dataclass(slots=True)
class HitTokens:
    """Tokens that were not computed, by the tier where they were found."""

    device: int = 0
    host: int = 0

    def add(self, found: int, loaded: int) -> None:
        """`found` leading tokens of a request, which waited for `loaded` of them to come from the host."""
        from_host = min(loaded, found)
        self.host += from_host
        self.device += found - from_host


@dataclass(frozen=True, slots=True)
class Saves:
    """Moves down that one step carries."""

    step: int
    blocks: list[int]  # oldest first
    host_blocks: list[int]
    ordered_at: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True)
class Load:
    """Moves up for one request, and what it holds until they are done."""

    step: int
    arriving: dict[Digest, int]
    depths: list[int]  # of those that arrive
    host_blocks: list[int]
    held: list[int]  # in the order of their sequence, those that arrive among them
    ordered_at: float = field(default_factory=time.monotonic)


class Tiers:
    """Finds prefixes in both tiers and orders the moves, which `pack` puts into the next step."""

    def __init__(self, pool: BlockPool, host: HostPool, costs: MoveCosts, reserve: int) -> None:
        """`reserve`: how many blocks should always be free or copied, as long as any are cached."""
        self.pool = pool
        self.host = host
        self.costs = costs
        self.saved_blocks = 0
        self.loaded_blocks = 0
        self.save_us = 0  # what all saves took together
        self.load_us = 0
        self.loaded = 0  # the loads of all steps up to this one have arrived
        self._reserve = reserve
        self._next_saves: list[tuple[int, int]] = []
        self._next_loads: list[Load] = []
        self._saves: deque[Saves] = deque()
        self._loads: deque[Load] = deque()
        self._arriving: dict[Digest, int] = {}  # and with which step

    @property
    def ordered(self) -> bool:
        """Whether there are moves that the next step must carry."""
        return bool(self._next_saves or self._next_loads)

    @property
    def in_motion(self) -> int:
        """Device blocks held by moves that were sent, which is over soon."""
        return sum(len(saves.blocks) for saves in self._saves) + sum(len(load.held) for load in self._loads)

    @property
    def in_motion_first(self) -> tuple[Saves | None, Load | None]:
        """The saves, and the load, that were sent first of those not done."""
        return self._saves[0] if self._saves else None, self._loads[0] if self._loads else None

    def done_by(self, news: Moved) -> tuple[list[Saves], list[Load]]:
        """The moves that `news` says are done; `moved` has not heard of it yet."""
        return (
            [saves for saves in self._saves if saves.step <= news.saved],
            [load for load in self._loads if load.step <= news.loaded],
        )

    def find(self, digests: Sequence[Digest]) -> Prefix:
        """How much of a chain is there, in either tier."""
        head = self.pool.index.match(digests)
        if not self.host.num_blocks:
            return Prefix(head)
        rest: list[tuple[Digest, int | None]] = []
        awaited = 0
        for digest in digests[len(head) :]:
            block = self.pool.index.find(digest)
            if block is None:
                step = self._arriving.get(digest, 0)
                if not step and self.host.find(digest) is None:
                    break
                awaited = max(awaited, step)
            rest.append((digest, block))
        return Prefix(head, rest, awaited)

    def knows(self, digest: Digest) -> bool:
        """Whether a chain goes on with `digest`: it is on the device, or on the host and would be loaded."""
        if self.pool.index.find(digest) is not None:
            return True
        return self.host.find(digest) is not None and self.costs.loading_pays(1)

    def has(self, prefix: Prefix) -> bool:
        """Whether what `prefix` would load is still there. Its other blocks are."""
        return all(block is not None or self.host.find(digest) is not None for digest, block in prefix.rest)

    def worth_loading(self, prefix: Prefix) -> bool:
        """Whether to bring the rest of `prefix` to the device, rather than to compute it."""
        return prefix.num_loads > 0 and self.costs.loading_pays(prefix.num_loads)

    # Down

    def save_ahead(self, wanted: int = 0) -> bool:
        """Orders saves, so that `wanted` blocks, and the reserve, will be ready.

        Whether any more are ready at once: of some there is a copy already.
        """
        pool, host = self.pool, self.host
        if not host.num_blocks:
            return False
        ready = pool.ready
        short = max(wanted, self._reserve) - ready - self._saving
        while short > 0 and (block := pool.oldest_uncopied()) is not None:
            digest = pool.index.digest_of(block)
            if digest is None:
                raise AssertionError(f"block {block} is cached, but nobody knows what it holds")
            if digest in host:
                host.touch(digest)
                pool.has_copy(block)
            elif (host_block := host.take(digest)) is not None:
                pool.begin_copy(block)
                self._next_saves.append((block, host_block))
            else:  # all in motion: some will be there with the next news
                break
            short -= 1
        return pool.ready > ready

    def make_ready(self, count: int, beside: list[int]) -> bool:
        """Whether `count` blocks can be allocated without loss once `beside` are held too.

        Where they cannot, saves are ordered, or in motion, that will make it so. As many blocks must be
        available.
        """
        if not self.host.num_blocks:
            return True
        while (held := self.pool.spare_among(beside)) + count > self.pool.ready:
            if not self.save_ahead(held + count):
                return False
        return True

    @property
    def _saving(self) -> int:
        return len(self._next_saves) + sum(len(saves.blocks) for saves in self._saves)

    # Up

    def load(self, prefix: Prefix, step: int) -> None:
        """Orders the rest of `prefix` with `step`, the next to be sent. Needs as many ready blocks."""
        self.pool.acquire(prefix.on_device)
        fresh = iter(self.pool.allocate(prefix.num_loads))
        held, arriving, depths, host_blocks = list(prefix.head), {}, [], []
        for digest, block in prefix.rest:
            if block is not None:
                held.append(block)
                continue
            host_block = self.host.find(digest)
            if host_block is None:
                raise AssertionError("a prefix was found, and has changed since")
            arriving[digest] = next(fresh)
            depths.append(len(held))
            held.append(arriving[digest])
            host_blocks.append(host_block)
        self.host.pin(host_blocks)
        self._arriving.update(dict.fromkeys(arriving, step))
        self._next_loads.append(Load(step, arriving, depths, host_blocks, held))

    # Both

    def pack(self, batch: StepBatch) -> None:
        """Puts what was ordered into the step that is about to be sent."""
        if self._next_saves:
            blocks, host_blocks = map(list, zip(*self._next_saves, strict=True))
            self._saves.append(Saves(batch.step, blocks, host_blocks))
            batch.saved_blocks, batch.saved_to = pack_i32(blocks), pack_i32(host_blocks)
            self._next_saves = []
        if self._next_loads:
            batch.loaded_blocks = pack_i32([b for load in self._next_loads for b in load.arriving.values()])
            batch.loaded_from = pack_i32([b for load in self._next_loads for b in load.host_blocks])
            self._loads.extend(self._next_loads)
            self._next_loads = []

    def moved(self, news: Moved, sent: int) -> None:
        """The worker says what is done; `sent` is the last step on its way, which may read what arrived."""
        self.save_us += news.save_us
        self.load_us += news.load_us
        while self._saves and self._saves[0].step <= news.saved:
            saves = self._saves.popleft()
            self.host.saved(saves.host_blocks)
            self.pool.end_copy(saves.blocks, sent)
            self.saved_blocks += len(saves.blocks)
        arrived = 0
        while self._loads and self._loads[0].step <= news.loaded:
            load = self._loads.popleft()
            for (digest, block), depth in zip(load.arriving.items(), load.depths, strict=True):
                del self._arriving[digest]
                self.pool.register(block, digest, depth, sent)
            self.host.unpin(load.host_blocks)
            self.pool.release(load.held, sent)
            arrived += len(load.arriving)
        if arrived:
            self.loaded = news.loaded
            self.loaded_blocks += arrived
            self.costs.observe_loads(arrived, news.load_us)
