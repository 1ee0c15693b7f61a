import json

import pytest

from batchyard.loadtest.answers import message_of, read_stream, refusal_of
from batchyard.loadtest.client import Exchange


def event(**fields):
    return f"data: {json.dumps(fields)}\n\n".encode()


async def read(*pieces):
    stamped = [(float(number), piece) for number, piece in enumerate(pieces)]
    return await read_stream(Exchange(0.0, 200, pieces=stamped))


async def test_an_event_has_the_time_of_the_piece_that_completed_its_line():
    whole = event(choices=[{"text": "a"}]) + event(choices=[{"text": "b", "finish_reason": "stop"}])
    answer = await read(whole[:10], whole[10:60], whole[60:], b"data: [DONE]\n\n")
    first = 1.0 if b"\n" in whole[10:60] else 2.0
    assert answer.stamps == [first, 2.0]
    assert ("".join(answer.text), answer.done, answer.error) == ("ab", True, None)


async def test_a_chats_role_and_its_empty_end_are_no_tokens():
    answer = await read(
        event(choices=[{"delta": {"role": "assistant", "content": ""}}]),
        event(choices=[{"delta": {"reasoning_content": "hm"}}]),
        event(choices=[{"delta": {"content": "a"}}]),
        event(choices=[{"delta": {}, "finish_reason": "stop"}]),
        event(choices=[], usage={"prompt_tokens": 3, "completion_tokens": 2}),
    )
    assert answer.stamps == [1.0, 2.0]
    assert (answer.input_tokens, answer.output_tokens, answer.done) == (3, 2, True)


async def test_a_completions_token_without_text_is_a_token():
    answer = await read(event(choices=[{"text": "", "finish_reason": None}]))
    assert answer.stamps == [0.0]


async def test_an_error_in_the_stream():
    answer = await read(event(choices=[{"text": "a"}]), event(error={"message": "out of\nluck"}))
    assert answer.error == "out of luck"


@pytest.mark.parametrize("piece", [b"data: {oops\n\n", b"data: 7\n\n", b'data: {"choices": 5}\n\n'])
async def test_what_is_not_openais_is_an_error(piece):
    assert "not OpenAI's" in (await read(piece)).error


async def test_comments_and_other_lines_are_passed_over():
    assert (await read(b": ping\n\nevent: x\n", b"data: [DONE]\n\n")).done


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"error": {"message": "no room"}}', "429: no room"),
        (b'{"detail": "gone"}', "429: {'detail': 'gone'}"),
        (b"plain words", "429: plain words"),
    ],
)
def test_refusals(body, says):
    assert refusal_of(Exchange(0.0, 429, pieces=[(0.0, body)])) == says


def test_messages_are_one_short_line():
    assert message_of({"message": "a\n b"}) == "a b"
    assert len(message_of("x" * 1000)) == 200
