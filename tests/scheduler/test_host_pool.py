import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from prefix_cache.hashing import Digest
from scheduler.host_pool import HostPool


def digest(n):
    return Digest(n.to_bytes(16, "little"))


def filled(pool, *names):
    blocks = [pool.take(digest(n)) for n in names]
    pool.saved(blocks)
    return blocks


def test_a_block_can_be_loaded_once_it_is_saved():
    pool = HostPool(2)
    block = pool.take(digest(1))
    assert digest(1) in pool
    assert pool.find(digest(1)) is None
    pool.saved([block])
    assert pool.find(digest(1)) == block


def test_the_one_used_longest_ago_makes_room():
    pool = HostPool(3)
    filled(pool, 1, 2, 3)
    pool.touch(digest(1))
    filled(pool, 4)
    assert [digest(n) in pool for n in (1, 2, 3, 4)] == [True, False, True, True]
    assert pool.evictions == 1


def test_what_has_been_loaded_makes_room_before_all_others_and_its_tail_first():
    pool = HostPool(4)
    blocks = filled(pool, 1, 2, 3, 4)
    pool.pin(blocks[2:])
    pool.unpin(blocks[2:])
    filled(pool, 5)
    assert digest(4) not in pool
    filled(pool, 6)
    assert digest(3) not in pool


def test_blocks_in_motion_are_not_given_away():
    pool = HostPool(2)
    (block,) = filled(pool, 1)
    pool.pin([block])
    assert pool.find(digest(1)) is None
    pool.touch(digest(1))
    assert pool.take(digest(2)) is not None
    assert pool.take(digest(3)) is None
    pool.unpin([block])
    assert pool.take(digest(3)) == block


class HostMachine(RuleBasedStateMachine):
    """Saves and loads that begin and end in any order."""

    def __init__(self):
        super().__init__()
        self.pool = HostPool(5)
        self.saving, self.loading = {}, {}
        self.holds = {}  # digest by block

    @rule(n=st.integers(0, 9))
    def take(self, n):
        if digest(n) in self.pool:
            return
        block = self.pool.take(digest(n))
        if block is None:
            assert len(self.saving) + len(self.loading) == 5
            return
        assert block not in self.saving
        assert block not in self.loading
        self.saving[block] = digest(n)
        self.holds.pop(block, None)

    @precondition(lambda self: self.saving)
    @rule(data=st.data())
    def saved(self, data):
        block = data.draw(st.sampled_from(sorted(self.saving)))
        self.pool.saved([block])
        self.holds[block] = self.saving.pop(block)

    @rule(n=st.integers(0, 9))
    def pin(self, n):
        block = self.pool.find(digest(n))
        assert block is None or self.holds[block] == digest(n)
        if block is not None:
            self.pool.pin([block])
            self.loading[block] = digest(n)

    @precondition(lambda self: self.loading)
    @rule(data=st.data())
    def unpin(self, data):
        block = data.draw(st.sampled_from(sorted(self.loading)))
        assert self.holds[block] == self.loading.pop(block)
        self.pool.unpin([block])

    @invariant()
    def books_balance(self):
        self.pool.check()
        assert self.pool.cached == len(self.holds)


HostMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestHostMachine = HostMachine.TestCase


def test_books_that_do_not_balance_are_found():
    pool = HostPool(2)
    filled(pool, 1)
    pool._free.pop()
    with pytest.raises(AssertionError, match="of 2"):
        pool.check()
