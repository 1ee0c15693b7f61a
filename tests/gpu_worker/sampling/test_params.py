"""Reading sampling parameters."""

import pytest

from batchyard.errors import ProtocolError
from gpu_worker.sampling.params import Wants, parse_sampling
from protos.packing import pack_f32, pack_i32
from protos.sampling_pb2 import Sampling
from tests.gpu_worker.helpers import sampling

VOCAB = 100


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"min_p": -1}, "min_p is -1"),
        ({"top_k": -1}, "top_k is -1"),
        ({"min_tokens": -1}, "min_tokens is -1"),
        ({"presence_penalty": float("inf")}, "presence_penalty is inf"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"bias": {100: 1.0}}, "outside the vocabulary of 100"),
    ],
)
def test_what_is_out_of_range_is_refused(changes, complaint):
    with pytest.raises(ProtocolError, match=complaint):
        parse_sampling(sampling(**changes), VOCAB)


def test_what_is_cut_short_is_refused():
    with pytest.raises(ProtocolError, match="cut short"):
        parse_sampling(Sampling(top_p=1, repetition_penalty=1, stop_token_ids=b"abc"), VOCAB)
    uneven = Sampling(top_p=1, repetition_penalty=1, bias_ids=pack_i32([1, 2]), bias_values=pack_f32([1]))
    with pytest.raises(ProtocolError, match="2 bias_ids, but 1 bias_values"):
        parse_sampling(uneven, VOCAB)


def test_counts_beyond_the_vocabulary_mean_all_of_it():
    params = parse_sampling(sampling(top_k=1000, logprobs=200, temperature=1.0, stop_ids=[-1, 5, 100]), VOCAB)
    assert (params.top_k, params.logprobs, params.prompt_logprobs) == (VOCAB, VOCAB, -1)
    assert params.stop_ids.tolist() == [5]


def test_greedy_requests_want_no_filters():
    greedy = parse_sampling(sampling(top_k=5, top_p=0.5, min_p=0.1), VOCAB)
    assert greedy.wants == Wants(0)
    random = parse_sampling(sampling(temperature=1.0, top_k=5, top_p=0.5, min_p=0.1, logprobs=0), VOCAB)
    assert random.wants == Wants.RANDOM | Wants.TOP_K | Wants.TOP_P | Wants.MIN_P | Wants.LOGPROBS
