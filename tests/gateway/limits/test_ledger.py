"""The ledger's promises, whatever happens in whatever order; and that Redis's script keeps the same ones."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

import gateway.limits
from gateway.limits.ledger import WINDOW_S, Ask, Change, Ledger, Quota

SCRIPT = (Path(gateway.limits.__file__).parent / "ledger.lua").read_text()
MINUTE_MS = WINDOW_S * 1000


@dataclass
class Running:
    """A request as its gateway sees it: what it holds still, what it has made and not told."""

    held: int
    running: int
    untold: int = 0


@dataclass
class World:
    """Requests that begin, make tokens, tell of them late, and end; and what was really made when."""

    quota: Quota
    now_ms: int = 0
    begun: list[int] = field(default_factory=list)
    made: list[tuple[int, int]] = field(default_factory=list)

    def most_in_a_minute(self) -> int:
        """Tokens made in the worst 60 seconds: any window may begin just where tokens were made."""
        return max(
            (
                sum(count for at, count in self.made if start <= at < start + MINUTE_MS)
                for start, _ in self.made
            ),
            default=0,
        )

    def most_begun_in_a_minute(self) -> int:
        return max((sum(s <= at < s + MINUTE_MS for at in self.begun) for s in self.begun), default=0)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["wait", "ask", "make", "tell", "end"]),
        st.integers(0, 90_000),
        st.integers(0, 10),
    ),
    max_size=60,
)


@given(STEPS, st.integers(1, 100), st.integers(1, 5), st.integers(1, 6))
def test_no_minute_has_more_than_the_limit(steps, tokens, running, requests):
    world = World(Quota(requests, tokens, running))
    ledger = Ledger()
    live: list[Running] = []
    for action, amount, which in steps:
        one = live[which % len(live)] if live else None
        match action:
            case "wait":
                world.now_ms += amount
            case "ask":
                ask = Ask(1 + amount % tokens, 1 + which % running)
                if ledger.apply(world.now_ms, world.quota, Change(), ask).granted:
                    live.append(Running(ask.tokens, ask.running))
                    world.begun.append(world.now_ms)
            case "make" if one:
                made = min(amount % 20, one.held - one.untold)
                one.untold += made
                world.made.append((world.now_ms, made))
            case "tell" if one:
                ledger.apply(world.now_ms, Quota(), Change(used=one.untold, held=-one.untold))
                one.held, one.untold = one.held - one.untold, 0
            case "end" if one:
                change = Change(used=one.untold, held=-one.held, running=-one.running)
                ledger.apply(world.now_ms, Quota(), change)
                live.remove(one)
        assert ledger.held == sum(one.held for one in live)
        assert ledger.running == sum(one.running for one in live) <= running
        assert sum(ledger.used.values()) + ledger.held <= tokens
    assert world.most_in_a_minute() <= tokens
    assert world.most_begun_in_a_minute() <= requests


@given(STEPS, st.integers(1, 100), st.integers(1, 100))
def test_the_wait_that_is_told_is_enough_and_not_too_long(steps, tokens, wanted):
    """Where nothing is held: not a millisecond before it, and sure after it."""
    quota, ask = Quota(tokens=tokens), Ask(min(wanted, tokens), 1)
    ledger, now_ms = Ledger(), 0
    for _, amount, _ in steps:
        now_ms += amount
        granted = ledger.apply(now_ms, quota, Change(), ask)
        if granted.granted:
            ledger.apply(now_ms, quota, Change(used=ask.tokens, held=-ask.tokens, running=-1))
        else:
            assert granted.cause == "tokens"
            assert 0 < granted.retry_ms <= MINUTE_MS + 1000
            for wait, enough in ((granted.retry_ms - 1, False), (granted.retry_ms, True)):
                later = Ledger(dict(ledger.used), dict(ledger.requests), ledger.held, ledger.running)
                assert later.apply(now_ms + wait, quota, Change(), ask).granted is enough


def test_what_is_held_is_taken_to_be_used_at_the_rate_of_the_limit():
    ledger, quota = Ledger(), Quota(tokens=60)
    assert ledger.apply(0, quota, Change(), Ask(60, 1)).granted
    refused = ledger.apply(0, quota, Change(), Ask(30, 1))
    assert (refused.cause, refused.retry_ms) == ("tokens", 30_000 + 61_000)
    assert refused.reset_tokens_ms == 60_000 + 61_000


def test_the_longest_wait_is_the_one_told():
    ledger, quota = Ledger(), Quota(requests=1, tokens=10, running=1)
    assert ledger.apply(0, quota, Change(), Ask(10, 1)).granted
    refused = ledger.apply(0, quota, Change(), Ask(10, 1))
    assert (refused.cause, refused.retry_ms) == ("tokens", 121_000)
    ledger.apply(0, quota, Change(held=-10, running=-1))
    refused = ledger.apply(0, quota, Change(), Ask(10, 1))
    assert (refused.cause, refused.retry_ms) == ("requests", 61_000)
    refused = ledger.apply(0, Quota(running=1), Change(running=1), Ask(10, 1))
    assert refused.cause == "running"


@pytest.mark.parametrize(("parts", "share"), [(1, (7, 9, 2)), (3, (2, 3, 1)), (100, (1, 1, 1))])
def test_a_share_is_never_nothing(parts, share):
    assert Quota(7, 9, 2).share(parts) == Quota(*share)
    assert Quota().share(parts) == Quota()


LIMIT = st.none() | st.integers(1, 50)
CHANGES = st.builds(Change, st.integers(0, 30), st.integers(-40, 10), st.integers(-3, 2), st.integers(0, 2))
ASKS = st.none() | st.builds(Ask, st.integers(0, 30), st.integers(1, 3))
CALLS = st.lists(st.tuples(st.integers(0, 40_000), CHANGES, ASKS), min_size=1, max_size=30)


@pytest.fixture
def script(redis_server):
    client = Redis.from_url(redis_server.url, decode_responses=True)
    run = client.register_script("local now_ms = tonumber(ARGV[12])\n" + SCRIPT)
    yield client, run
    client.close()


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.builds(Quota, LIMIT, LIMIT, LIMIT), CALLS)
def test_the_script_agrees_step_by_step(script, quota, calls):
    client, run = script
    client.flushdb()
    ledger, now_ms = Ledger(), 1_700_000_000_123
    for wait, change, ask in calls:
        now_ms += wait
        expected = ledger.apply(now_ms, quota, change, ask)
        answer = run(keys=["k"], args=arguments("me", 10**9, quota, change, ask, now_ms))
        assert answer == [
            int(expected.granted),
            expected.tokens,
            expected.requests,
            expected.running,
            expected.cause,
            expected.retry_ms,
            expected.reset_tokens_ms,
            expected.reset_requests_ms,
        ]


def arguments(gateway, lease_ms, quota, change, ask, now_ms):
    limits = [-1 if limit is None else limit for limit in (quota.requests, quota.tokens, quota.running)]
    asked = (-1, 0) if ask is None else (ask.tokens, ask.running)
    changes = (change.used, change.held, change.running, change.requests)
    return [gateway, lease_ms, *limits, *changes, *asked, now_ms]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30_000), st.integers(1, 30)), max_size=40))
def test_any_number_of_gateways_keep_one_limit(script, asks):
    """Each makes at once what it was granted."""
    client, run = script
    client.flushdb()
    world = World(Quota(tokens=50), now_ms=1_700_000_000_000)
    held = [0, 0, 0]
    for which, wait, tokens in asks:
        world.now_ms += wait
        done, held[which] = held[which], 0
        change = Change(used=done, held=-done)
        args = arguments(f"g{which}", 10**9, world.quota, change, Ask(tokens, 0), world.now_ms)
        if run(keys=["k"], args=args)[0]:
            held[which] = tokens
            world.made.append((world.now_ms, tokens))
    assert world.most_in_a_minute() <= 50


def test_what_a_dead_gateway_holds_ends_with_its_lease(script):
    client, run = script
    quota, now_ms = Quota(tokens=10, running=1), 1_700_000_000_000
    assert run(keys=["k"], args=arguments("dead", 5_000, quota, Change(), Ask(10, 1), now_ms))[0]
    for wait, granted in ((5_000, 0), (5_001, 1)):
        args = arguments("alive", 5_000, quota, Change(), Ask(10, 1), now_ms + wait)
        assert run(keys=["k"], args=args)[0] == granted
    assert client.pttl("k") == pytest.approx(66_000, abs=5_000)
