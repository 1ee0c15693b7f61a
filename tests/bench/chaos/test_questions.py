"""What makes two answers equal."""

import pytest

from bench.chaos.questions import Answer, differences, questions, stopped
from protos.inference_pb2 import Alternative, GenerateResponse, TokenLogprob, Usage


def answer(tokens=(5, 6, 7), text="abc", logprob=-1.0, top=(-1.0, -2.0), finish="length", completion=3):
    scores = [
        TokenLogprob(token_id=token, logprob=logprob, top=[Alternative(logprob=value) for value in top])
        for token in tokens
    ]
    made = Answer()
    made.add(GenerateResponse(text=text[:1], token_ids=tokens[:1], logprobs=scores[:1]))
    usage = Usage(prompt_tokens=4, completion_tokens=completion)
    rest = GenerateResponse(
        text=text[1:], token_ids=tokens[1:], logprobs=scores[1:], finish_reason=finish, usage=usage
    )
    made.add(rest)
    return made


def test_equal_answers_in_other_pieces_have_no_differences():
    made = answer()
    assert made.choices[0].tokens == [5, 6, 7]
    assert made.choices[0].text == "abc"
    assert list(differences(made, answer())) == []


def test_rounding_is_no_difference_and_neither_is_what_a_cache_held():
    other = answer(logprob=-1.0005, top=(-1.0005, -1.9995))
    other.usage.cached_tokens = 4
    assert list(differences(answer(), other)) == []


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (answer(tokens=(5, 9, 7)), "choice 0: 3 tokens, not 3; other from token 1 on"),
        (answer(tokens=(5, 6)), "choice 0: 2 tokens, not 3; other in length"),
        (answer(text="abd"), "choice 0: other text"),
        (answer(logprob=-1.1), "choice 0: other log-probabilities"),
        (answer(top=(-1.0,)), "choice 0: other log-probabilities"),
        (answer(finish="stop"), "choice 0: ended by 'stop', not 'length'"),
        (answer(completion=4), "usage (4, 4), not (4, 3)"),
        (Answer(), "choices [], not [0]"),
    ],
)
def test_all_else_is(other, what):
    assert list(differences(other, answer())) == [what]


def test_kinds_come_in_turn_and_each_seed_is_its_own():
    asked = questions([[1, 2]] * 12, "demo")
    assert [question.kind for question in asked[:6]] == [question.kind for question in asked[6:]]
    assert len({question.kind for question in asked}) == 6
    assert len({question.request.seed for question in asked}) == 12


def test_a_stop_string_is_one_that_the_text_comes_to_late():
    question = next(q for q in questions([[1]] * 6, "demo") if q.kind == "stop")
    text = "".join(chr(ord("a") + n % 26) + str(n) for n in range(60))
    calm = answer(text=text)
    (stop,) = stopped(question, calm).request.stop
    assert text.find(stop) >= len(text) // 2
    assert not question.request.stop
