"""Log-probabilities in the form of the older API."""

import math

from gateway.completion_output import completion
from gateway.fan_out import WholeAnswer
from gateway.schema.common import PromptTokensDetails, Usage
from gateway.types import Candidate, TokenLogprob

USAGE = Usage(
    prompt_tokens=1,
    completion_tokens=1,
    total_tokens=2,
    prompt_tokens_details=PromptTokensDetails(cached_tokens=0),
)


def logprobs_of(*entries: TokenLogprob):
    answer = WholeAnswer("x", list(entries))
    return completion("cmpl-1", 0, "demo", [answer], True, USAGE).choices[0].logprobs


def test_parts_of_characters_are_told_apart():
    first, second = (Candidate(i, "\ufffd", bytes([0xE2 + i]), -1.0 - i) for i in (0, 1))
    told = logprobs_of(TokenLogprob(first, (first, second), 0))
    assert told.tokens == [r"bytes:\xe2"]
    assert told.top_logprobs == [{r"bytes:\xe2": -1.0, r"bytes:\xe3": -2.0}]


def test_the_token_that_stands_there_is_among_the_top():
    token, likelier = Candidate(1, "a", b"a", -3.0), Candidate(2, "b", b"b", -1.0)
    assert logprobs_of(TokenLogprob(token, (likelier,), 0)).top_logprobs == [{"b": -1.0, "a": -3.0}]


def test_what_json_cannot_say():
    impossible = Candidate(1, "a", b"a", -math.inf)
    unknown = Candidate(1, "a", b"a", math.nan)
    told = logprobs_of(TokenLogprob(impossible, (), 0), TokenLogprob(unknown, (), 1))
    assert told.token_logprobs == [-9999.0, None]
    assert told.top_logprobs == [{"a": -9999.0}, None]
