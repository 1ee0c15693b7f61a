"""From request parameters to SamplingParams."""

import pytest

from gateway.errors import BadParameter
from gateway.sampling import choice_seed, sampling_params
from gateway.schema.common import SamplingFields
from gateway.submission import Limits
from gateway.types import SamplingParams

LIMITS = Limits(max_model_len=100, vocab_size=50)


def params(max_tokens=None, **fields):
    return sampling_params(SamplingFields(**fields), limits=LIMITS, max_tokens=max_tokens)


def test_defaults_are_those_of_sampling_params():
    assert params() == SamplingParams()


def test_everything_arrives():
    given = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.3,
        "frequency_penalty": -0.4,
        "seed": 11,
        "min_tokens": 2,
        "ignore_eos": True,
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
    }
    made = params(9, stop=["a", "b"], stop_token_ids=[3], logit_bias={"4": -1.5}, **given)
    assert made == SamplingParams(
        max_tokens=9, stop=("a", "b"), stop_token_ids=(3,), logit_bias={4: -1.5}, **given
    )


def test_one_stop_text_is_a_list_of_one():
    assert params(stop="x").stop == ("x",)


@pytest.mark.parametrize("top_k", [-1, 0])
def test_top_k_off(top_k):
    assert params(top_k=top_k).top_k == 0


@pytest.mark.parametrize(("temperature", "used"), [(1e-300, 0.0), (1e-6, 0.0), (0.01, 0.01)])
def test_a_temperature_of_next_to_nothing_is_greedy(temperature, used):
    assert params(temperature=temperature).temperature == used


def test_seeds_are_unsigned_64_bits():
    assert params(seed=-1).seed == 2**64 - 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logit_bias": {"50": 1.0}}, "logit_bias"),
        ({"stop_token_ids": [3, 50]}, "stop_token_ids"),
        ({"max_tokens": 3, "min_tokens": 4}, "min_tokens"),
    ],
)
def test_what_does_not_fit_is_refused(fields, param):
    with pytest.raises(BadParameter) as caught:
        params(**fields)
    assert caught.value.param == param


def test_choice_seeds_differ_and_repeat():
    seeds = [choice_seed(7, choice) for choice in range(100)]
    assert seeds[0] == 7
    assert len(set(seeds)) == 100
    assert seeds == [choice_seed(7, choice) for choice in range(100)]
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert choice_seed(None, 3) is None
