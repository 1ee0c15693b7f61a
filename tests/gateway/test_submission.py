import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from batchyard.errors import InvalidRequest
from gateway.errors import reply_to
from gateway.keys.records import Tenant
from gateway.submission import Limits, build_submit, check_prompt, tenant_salt
from gateway.types import GenerationRequest, SamplingParams, Terms
from protos.packing import unpack_f32, unpack_i32
from protos.scheduling_pb2 import Submit

LIMITS = Limits(max_model_len=10, vocab_size=100)
TERMS = Terms(Tenant(name="acme", weight=2.5), priority=-3, cache_salt="salt")


def submit(params: SamplingParams, eos_ids: frozenset[int] = frozenset()) -> Submit:
    request = GenerationRequest("name", (1, 2, 3), params, traceparent="00-trace", terms=TERMS)
    return build_submit(request, LIMITS, eos_ids)


def test_everything_asked_for_is_passed_on() -> None:
    params = SamplingParams(
        max_tokens=5,
        temperature=0.5,
        top_p=0.75,
        top_k=7,
        min_p=0.125,
        repetition_penalty=1.5,
        presence_penalty=0.25,
        frequency_penalty=-0.5,
        seed=2**64 - 1,
        min_tokens=2,
        stop_token_ids=(9, 4),
        logprobs=0,
        prompt_logprobs=3,
        logit_bias={7: -1.5, 6: 2.0},
    )
    sent = submit(params)
    assert (sent.request_id, sent.prompt_len, sent.max_tokens) == ("name", 3, 5)
    assert (sent.traceparent, sent.cache_salt) == ("00-trace", "0:salt")
    assert (sent.tenant, sent.weight, sent.priority, sent.timeout_ms) == ("acme", 2.5, -3, 0)
    assert unpack_i32(sent.tokens).tolist() == [1, 2, 3]
    sampling = sent.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.75, 7, 0.125)
    assert (sampling.repetition_penalty, sampling.presence_penalty) == (1.5, 0.25)
    assert (sampling.frequency_penalty, sampling.seed, sampling.min_tokens) == (-0.5, 2**64 - 1, 2)
    assert sampling.HasField("logprobs")
    assert (sampling.logprobs, sampling.prompt_logprobs) == (0, 3)
    bias = zip(unpack_i32(sampling.bias_ids).tolist(), unpack_f32(sampling.bias_values).tolist(), strict=True)
    assert dict(bias) == {7: -1.5, 6: 2.0}


def test_log_probabilities_are_only_computed_when_asked_for() -> None:
    sampling = submit(SamplingParams()).sampling
    assert not sampling.HasField("logprobs")
    assert not sampling.HasField("prompt_logprobs")


@pytest.mark.parametrize(("ignore_eos", "stops"), [(False, [2, 4, 9]), (True, [4, 9])])
def test_end_tokens_of_the_models_vocabulary_stop_unless_ignored(ignore_eos: bool, stops: list[int]) -> None:
    params = SamplingParams(stop_token_ids=(9, 4), ignore_eos=ignore_eos)
    sent = submit(params, eos_ids=frozenset({2, 100}))
    assert unpack_i32(sent.sampling.stop_token_ids).tolist() == stops


def test_without_a_limit_an_answer_gets_what_the_context_has_left() -> None:
    assert submit(SamplingParams()).max_tokens == 7


def test_without_a_seed_every_request_draws_its_own() -> None:
    assert submit(SamplingParams()).sampling.seed != submit(SamplingParams()).sampling.seed


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="empty") as caught:
        check_prompt((), 1, LIMITS)
    assert caught.value.param == "prompt"


@pytest.mark.parametrize("token_id", [-1, 100, 2**40])
def test_a_token_id_past_the_vocabulary_is_refused(token_id: int) -> None:
    with pytest.raises(InvalidRequest, match=f"token id {token_id}, .* has 100 tokens") as caught:
        check_prompt((1, token_id, 2), 1, LIMITS)
    assert caught.value.param == "prompt"


@pytest.mark.parametrize(
    ("prompt_len", "max_tokens", "said"),
    [
        (
            8,
            3,
            "This model's maximum context length is 10 tokens. However, you requested 11 tokens (8 in the "
            "prompt, 3 for the completion). Please reduce the length of the prompt or of the completion.",
        ),
        (
            10,
            None,
            "This model's maximum context length is 10 tokens. However, you requested at least 11 tokens (10 "
            "in the prompt, at least 1 for the completion). Please reduce the length of the prompt or of the "
            "completion.",
        ),
    ],
)
def test_what_does_not_fit_the_context_is_refused(prompt_len: int, max_tokens: int | None, said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_prompt((1,) * prompt_len, max_tokens, LIMITS)
    assert str(caught.value) == said
    assert reply_to(caught.value).code == "context_length_exceeded"


def test_what_just_fits_is_accepted() -> None:
    check_prompt((1,) * 8, 2, LIMITS)
    check_prompt((1,) * 9, None, LIMITS)


def salt(keys: str, own: str) -> str:
    return tenant_salt(
        GenerationRequest("", (1,), SamplingParams(), terms=Terms(Tenant(cache_salt=keys), cache_salt=own))
    )


def test_requests_without_any_salt_share_with_each_other() -> None:
    assert salt("", "") == ""


@given(st.tuples(st.text(), st.text()), st.tuples(st.text(), st.text()))
@example(("", "1:ab"), ("a", "b"))
@example(("a", ""), ("", "a"))
def test_no_request_can_spell_the_salt_of_another_key(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (salt(*one) == salt(*other)) == (one == other)


def test_a_deadline_is_told_as_the_time_that_is_left() -> None:
    def timeout_ms(seconds: float) -> int:
        terms = Terms(deadline=time.perf_counter() + seconds)
        return build_submit(
            GenerationRequest("", (1,), SamplingParams(), terms=terms), LIMITS, frozenset()
        ).timeout_ms

    assert 9_000 < timeout_ms(10) <= 10_000
    assert timeout_ms(-1) == 1  # 0 would be none
