import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from prefix_cache.hashing import Digest
from prefix_cache.mirror import Remembered
from scheduler.block_pool import BlockPool


def digest(n):
    return Digest(n.to_bytes(16, "little"))


def test_blocks_are_reusable_only_behind_the_fence():
    pool = BlockPool(4)
    blocks = pool.allocate(4)
    pool.release(blocks, after_step=7)
    assert (pool.available, pool.fenced, pool.held) == (0, 4, 4)
    pool.settle(6)
    assert pool.available == 0
    pool.settle(7)
    assert (pool.free, pool.fenced, pool.held) == (4, 0, 0)


def test_known_blocks_stay_cached_and_tails_go_first():
    pool = BlockPool(4)
    blocks = pool.allocate(3)
    for n, block in enumerate(blocks):
        pool.register(block, digest(n), n, 0)
    pool.release(blocks, 0)
    pool.settle(0)
    assert (pool.free, pool.cached) == (1, 3)
    pool.allocate(2)  # the free one, then the tail of the chain
    assert pool.index.match([digest(0), digest(1), digest(2)]) == blocks[:2]


def test_acquired_blocks_are_not_evicted():
    pool = BlockPool(2)
    (block,) = pool.allocate(1)
    pool.register(block, digest(1), 0, 0)
    pool.release([block], 0)
    pool.settle(0)
    assert pool.idle_among([block]) == 1
    pool.acquire([block])
    pool.acquire([block])
    assert pool.available == 1
    pool.release([block], 1)
    pool.settle(1)
    assert pool.held == 1
    pool.release([block], 2)
    pool.settle(2)
    assert pool.cached == 1


def test_a_fenced_block_can_be_acquired_and_fenced_again():
    pool = BlockPool(1)
    (block,) = pool.allocate(1)
    pool.register(block, digest(1), 0, 0)
    pool.release([block], 1)
    pool.acquire([block])
    assert pool.fenced == 0
    pool.release([block], 2)
    pool.settle(1)
    assert (pool.cached, pool.fenced) == (0, 1)
    pool.settle(2)
    assert (pool.cached, pool.fenced) == (1, 0)
    pool.check()


def test_allocating_more_than_available_is_a_bug():
    with pytest.raises(AssertionError, match="3 blocks wanted, 2 available"):
        BlockPool(2).allocate(3)


def test_contents_are_confirmed_once_their_step_is_answered_and_only_while_they_last():
    pool = BlockPool(2)
    pool.follow()
    first, second = pool.allocate(2)
    pool.register(first, digest(1), 0, step=3)
    pool.register(second, digest(2), 5, step=4)
    assert pool.confirmed(2) == []
    assert pool.confirmed(3) == [(first, digest(1), 1, 0)]
    assert pool.everything() == [(first, digest(1), 1, 0), (second, digest(2), 1, 5)]
    pool.release([second], 3)
    pool.settle(3)
    pool.allocate(1)
    assert pool.confirmed(4) == []


def test_only_blocks_of_the_remembered_generation_are_restored():
    pool = BlockPool(4, generations=[3, 1, 0, 7])
    remembered = {0: (digest(1), 3), 1: (digest(2), 2), 3: (digest(3), 7), 9: (digest(4), 0)}
    restored = pool.restore({block: Remembered(*known, depth=0) for block, known in remembered.items()})
    assert restored == 2
    assert pool.index.match([digest(1), digest(3)]) == [0, 3]
    assert (pool.free, pool.cached) == (2, 2)
    pool.allocate(4)
    assert pool.generations == [4, 2, 1, 8]
    assert len(pool.index) == 0


def test_what_was_restored_is_evicted_tails_first():
    pool = BlockPool(6)
    depths = [2, 0, 1, 1, 0, 2]  # two chains
    pool.restore({block: Remembered(digest(block), 0, depth) for block, depth in enumerate(depths)})
    assert [depths[block] for block in pool.allocate(6)] == [2, 2, 1, 1, 0, 0]
    assert pool.evictions == 6


def test_of_two_equal_blocks_the_one_in_use_is_known():
    pool = BlockPool(4)
    first, second, third = pool.allocate(3)
    pool.register(first, digest(1), 0, 0)
    pool.register(second, digest(1), 0, 0)
    assert pool.index.find(digest(1)) == first
    pool.release([first], 1)
    pool.register(second, digest(1), 0, 1)
    assert pool.index.find(digest(1)) == second
    pool.release([second], 2)
    pool.settle(2)
    assert (pool.free, pool.cached) == (2, 1)
    pool.register(third, digest(1), 0, 3)
    assert (pool.free, pool.cached, pool.index.find(digest(1))) == (3, 0, third)
    pool.check()


def cached_pool(count):
    pool = BlockPool(count)
    blocks = pool.allocate(count)
    for n, block in enumerate(blocks):
        pool.register(block, digest(n), n, 0)
    pool.release(blocks[::-1], 0)
    pool.settle(0)
    return pool, blocks


def test_copied_blocks_are_found_until_they_are_evicted_before_all_others():
    pool, (first, second, third) = cached_pool(3)
    assert (pool.oldest_uncopied(), pool.ready) == (first, 0)
    pool.begin_copy(first)
    assert (pool.oldest_uncopied(), pool.available, pool.held) == (second, 2, 1)
    pool.has_copy(second)
    pool.end_copy([first], 0)
    assert (pool.ready, pool.available, pool.cached) == (2, 3, 3)
    assert pool.index.match([digest(0), digest(1), digest(2)]) == [first, second, third]
    assert pool.spare_among([first, third]) == 1
    pool.acquire([second])
    pool.release([second], 1)
    pool.settle(1)
    assert pool.allocate(2) == [first, third]  # the copy does not make up for being used last
    pool.check()


def test_a_block_acquired_while_it_is_copied_is_fenced_like_any_other():
    pool, (block,) = cached_pool(1)
    pool.begin_copy(block)
    pool.acquire([block])
    pool.release([block], 5)
    pool.end_copy([block], 6)
    assert (pool.available, pool.fenced) == (0, 1)
    pool.settle(5)
    assert pool.available == 0
    pool.settle(6)
    assert (pool.cached, pool.ready, pool.oldest_uncopied()) == (1, 0, block)
    pool.check()


class PoolMachine(RuleBasedStateMachine):
    """Users who allocate, share, register, release and settle in any order."""

    def __init__(self):
        super().__init__()
        self.pool = BlockPool(12)
        self.users = []
        self.copying = []
        self.step = 0
        self.settled = 0
        self.digests = 0
        self.known = {}

    @precondition(lambda self: self.pool.available)
    @rule(data=st.data())
    def allocate(self, data):
        count = data.draw(st.integers(1, self.pool.available))
        blocks = self.pool.allocate(count)
        held = {b for user in self.users for b in user} | set(self.copying)
        assert not held & set(blocks)
        self.known = {d: b for d, b in self.known.items() if b not in blocks}
        self.users.append(blocks)

    @precondition(lambda self: self.users)
    @rule(data=st.data())
    def register(self, data):
        for block in data.draw(st.sampled_from(self.users)):
            if not self.pool.index.has(block):
                self.digests += 1
                self.pool.register(block, digest(self.digests), 0, 0)
                self.known[digest(self.digests)] = block

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def share(self, data):
        wanted = data.draw(st.lists(st.sampled_from(sorted(self.known)), unique=True, min_size=1))
        blocks = [self.known[d] for d in wanted]
        assert self.pool.index.match(wanted) == blocks
        self.pool.acquire(blocks)
        self.users.append(blocks)

    @precondition(lambda self: self.users)
    @rule(data=st.data())
    def release(self, data):
        user = self.users.pop(data.draw(st.integers(0, len(self.users) - 1)))
        self.step += data.draw(st.integers(0, 1))
        self.pool.release(user, self.step)

    @rule(held=st.booleans())
    def copy(self, held):
        block = self.pool.oldest_uncopied()
        if block is not None and held:
            self.pool.begin_copy(block)
            self.copying.append(block)
        elif block is not None:
            self.pool.has_copy(block)

    @precondition(lambda self: self.copying)
    @rule(data=st.data())
    def copied(self, data):
        self.pool.end_copy([self.copying.pop(data.draw(st.integers(0, len(self.copying) - 1)))], self.step)

    @rule(data=st.data())
    def settle(self, data):
        self.settled = data.draw(st.integers(self.settled, self.step))
        self.pool.settle(self.settled)

    @invariant()
    def books_balance(self):
        self.pool.check()
        assert self.pool.free + self.pool.held + self.pool.cached == 12
        assert len(self.pool.index) == len(self.known)

    def teardown(self):
        self.pool.end_copy(self.copying, self.step)
        for user in self.users:
            self.pool.release(user, self.step)
        self.pool.settle(self.step)
        self.pool.check()
        assert self.pool.held == 0


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestPoolMachine = PoolMachine.TestCase
