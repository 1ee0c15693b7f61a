"""What a request may ask for."""

import pytest

from gateway.errors import BadParameter
from gateway.keys.records import ANYBODY, Tenant
from gateway.shaping import UNBOUNDED, Shape, answer_limits, priority_of, timeout_of
from gateway.submission import Limits

LIMITS = Limits(max_model_len=100, vocab_size=50)


def given(asked=None, lengths=(10,), n=1, tenant=ANYBODY, shape=UNBOUNDED):
    prompts = [(1,) * length for length in lengths]
    return answer_limits(prompts, n, asked, tenant=tenant, shape=shape, limits=LIMITS)


def refusal(**asked):
    with pytest.raises(BadParameter) as caught:
        given(**asked)
    return caught.value


def test_what_is_asked_for_is_given():
    assert given(asked=7, lengths=(10, 20)) == [7, 7]


@pytest.mark.parametrize(
    ("tenant", "shape", "limits"),
    [
        (ANYBODY, UNBOUNDED, [90, 80]),
        (ANYBODY, Shape(default_max_tokens=85), [85, 80]),
        (ANYBODY, Shape(default_max_tokens=85, max_tokens=7), [7, 7]),
        (Tenant(max_tokens=5), Shape(max_tokens=7), [5, 5]),
        (Tenant(tokens_per_minute=51), UNBOUNDED, [10, 10]),  # (51 - 10 - 20) / 2
    ],
)
def test_what_is_left_open_is_the_least_that_bounds_it(tenant, shape, limits):
    assert given(lengths=(10, 20), tenant=tenant, shape=shape) == limits


@pytest.mark.parametrize(
    ("per_minute", "shape", "limit"),
    [
        (40_000, UNBOUNDED, 5000),  # an eighth
        (4000, UNBOUNDED, 1024),
        (700, UNBOUNDED, 690),
        (40_000, Shape(default_max_tokens=20_000), 20_000),
    ],
)
def test_a_chat_that_does_not_say_leaves_room_for_others(per_minute, shape, limit):
    tenant, limits = Tenant(tokens_per_minute=per_minute), Limits(max_model_len=100_000, vocab_size=10)
    prompt = (1,) * 10
    assert answer_limits([prompt], 1, None, tenant=tenant, shape=shape, limits=limits) == [limit]


@pytest.mark.parametrize(
    ("asked", "param", "code", "said"),
    [
        ({"lengths": (0,)}, "prompt", "invalid_value", "empty"),
        ({"asked": 91}, None, "context_length_exceeded", "maximum context length is 100"),
        (
            {"lengths": (11,), "shape": Shape(max_prompt_tokens=10)},
            "prompt",
            "context_length_exceeded",
            "11 tokens; this server takes 10",
        ),
        (
            {"asked": 8, "shape": Shape(max_tokens=7)},
            "max_tokens",
            "invalid_value",
            "With this server, an answer has 7",
        ),
        (
            {"asked": 8, "tenant": Tenant(max_tokens=7)},
            "max_tokens",
            "invalid_value",
            "With this API key, an answer has 7",
        ),
        (
            {"asked": 8, "tenant": Tenant(tokens_per_minute=17)},
            "max_tokens",
            "tokens_exceed_limit",
            "18 tokens .* limit of this API key is 17 tokens",
        ),
        ({"tenant": Tenant(tokens_per_minute=10)}, "max_tokens", "tokens_exceed_limit", "11 tokens"),
        (
            {"asked": 1, "n": 3, "tenant": Tenant(concurrent_requests=2)},
            "n",
            "answers_exceed_limit",
            "asks for 3 answers at once",
        ),
    ],
)
def test_what_can_never_be_served_is_refused_by_name(asked, param, code, said):
    error = refusal(**asked)
    assert (error.param, error.code) == (param, code)
    with pytest.raises(BadParameter, match=said):
        raise error


def test_what_just_fits_is_given():
    assert given(asked=8, tenant=Tenant(tokens_per_minute=18, concurrent_requests=1, max_tokens=8)) == [8]
    assert given(asked=8, n=2, tenant=Tenant(tokens_per_minute=26, concurrent_requests=2)) == [8]


def test_priority():
    tenant = Tenant(min_priority=-2, max_priority=3)
    assert [priority_of(asked, tenant) for asked in (None, -2, 0, 3)] == [0, -2, 0, 3]
    for asked in (-3, 4):
        with pytest.raises(BadParameter, match="from -2 to 3"):
            priority_of(asked, tenant)


@pytest.mark.parametrize(
    ("asked", "tenant", "seconds"),
    [
        (None, ANYBODY, None),
        (3.5, ANYBODY, 3.5),
        (None, Tenant(default_timeout=9), 9),
        (None, Tenant(max_timeout=5), 5),
        (None, Tenant(default_timeout=9, max_timeout=5), 5),
        (5, Tenant(default_timeout=9, max_timeout=5), 5),
    ],
)
def test_timeout(asked, tenant, seconds):
    assert timeout_of(asked, tenant) == seconds


def test_a_timeout_over_the_keys():
    with pytest.raises(BadParameter, match="at most 5 seconds") as caught:
        timeout_of(5.5, Tenant(max_timeout=5))
    assert caught.value.param == "timeout"
