from collections.abc import Sequence
from typing import Any

import pytest

from batchyard.errors import ProtocolError
from gateway.subscription import Update
from gateway.transcript import Transcript
from gateway.types import GenerationRequest, Piece, SamplingParams
from protos.packing import pack_f32, pack_i32
from protos.sampling_pb2 import Logprobs
from protos.scheduling_pb2 import (
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    FINISH_REASON_TIMEOUT,
    FINISH_REASON_UNSPECIFIED,
    Finished,
)
from tests.gateway import tiny_tokenizers as tiny

LOST = "\N{REPLACEMENT CHARACTER}"
LENGTH = Finished(reason=FINISH_REASON_LENGTH)
(END_ID,) = tiny.byte_level().eos_ids


def encode(text: str) -> list[int]:
    return tiny.byte_level().encode(text, add_special_tokens=False)


def letters(text: str) -> list[int]:
    """One token for each byte."""
    return [tiny.byte_token(tiny.byte_level(), byte) for byte in text.encode()]


def transcript(**params: Any) -> Transcript:
    request = GenerationRequest("name", tuple(encode("a prompt")), SamplingParams(**params))
    return Transcript(tiny.byte_level(), request)


def stopped(token_id: int) -> Finished:
    return Finished(reason=FINISH_REASON_STOP, stop_token=token_id)


def whole(transcript: Transcript, updates: Sequence[Update]) -> Piece:
    """All pieces as one; nothing comes after the last."""
    pieces = []
    for update in updates:
        piece = transcript.add(update)
        if piece is not None:
            pieces.append(piece)
            if piece.finish_reason:
                break
    last = pieces[-1]
    assert last.finish_reason
    return Piece(
        text="".join(piece.text for piece in pieces),
        token_ids=tuple(token_id for piece in pieces for token_id in piece.token_ids),
        logprobs=tuple(entry for piece in pieces for entry in piece.logprobs),
        finish_reason=last.finish_reason,
        stop_reason=last.stop_reason,
        cached_tokens=sum(piece.cached_tokens for piece in pieces),
    )


def one_by_one(ids: Sequence[int], finished: Finished) -> list[Update]:
    return [Update([token_id]) for token_id in ids[:-1]] + [Update([ids[-1]], finished=finished)]


def merged(ids: Sequence[int], finished: Finished) -> list[Update]:
    return [Update(list(ids), finished=finished)]


DELIVERY = pytest.mark.parametrize("deliver", [one_by_one, merged])


def test_cached_tokens_are_told_with_the_first_piece() -> None:
    told = transcript()
    assert told.add(Update(cached_tokens=16)) is None
    pieces = [told.add(Update([token_id])) for token_id in encode("fox")]
    assert [piece.cached_tokens for piece in pieces if piece] == [16, *[0] * (len(pieces) - 1)]


@DELIVERY
def test_an_answer_of_full_length(deliver: Any) -> None:
    ids = encode("naïve 日本 fox")
    answer = whole(transcript(), deliver(ids, LENGTH))
    assert answer == Piece("naïve 日本 fox", tuple(ids), finish_reason="length")


@DELIVERY
def test_an_answer_whose_time_was_up(deliver: Any) -> None:
    ids = encode("naïve 日本 fox")
    answer = whole(transcript(), deliver(ids, Finished(reason=FINISH_REASON_TIMEOUT)))
    assert answer == Piece("naïve 日本 fox", tuple(ids), finish_reason="length", stop_reason="timeout")


def test_a_request_whose_time_was_up_before_it_ran() -> None:
    answer = transcript(prompt_logprobs=1).add(Update(finished=Finished(reason=FINISH_REASON_TIMEOUT)))
    assert answer == Piece("", (), finish_reason="length", stop_reason="timeout")


@DELIVERY
def test_the_end_token_is_counted_and_not_shown(deliver: Any) -> None:
    ids = [*encode("fox"), END_ID]
    answer = whole(transcript(skip_special_tokens=False), deliver(ids, stopped(END_ID)))
    assert answer == Piece("fox", tuple(ids), finish_reason="stop", stop_reason=None)


@DELIVERY
def test_a_stop_token_that_the_request_named_is_told(deliver: Any) -> None:
    ids = letters("fox.")
    answer = whole(transcript(stop_token_ids=(ids[-1],)), deliver(ids, stopped(ids[-1])))
    assert answer == Piece("fox", tuple(ids), finish_reason="stop", stop_reason=ids[-1])


def test_a_stop_token_is_shown_on_request() -> None:
    ids = letters("fox.")
    params = {"stop_token_ids": (ids[-1],), "include_stop_str_in_output": True}
    assert whole(transcript(**params), merged(ids, stopped(ids[-1]))).text == "fox."


@DELIVERY
@pytest.mark.parametrize(("include", "text"), [(False, "one two"), (True, "one two STOP")])
def test_a_stop_string_ends_the_answer_with_the_token_that_completes_it(
    deliver: Any, include: bool, text: str
) -> None:
    ids = letters("one two STOP three")
    answer = whole(transcript(stop=(" STOP",), include_stop_str_in_output=include), deliver(ids, LENGTH))
    assert answer.text == text
    assert answer.token_ids == tuple(letters("one two STOP"))
    assert (answer.finish_reason, answer.stop_reason) == ("stop", " STOP")


def test_what_only_resembled_a_stop_string_comes_at_the_end() -> None:
    answer = transcript(stop=("STOP",))
    ids = letters("a STO")
    pieces = [answer.add(update) for update in one_by_one(ids, LENGTH)]
    assert [piece.text for piece in pieces if piece] == ["a", " ", "", "", "STO"]


def test_a_stop_string_beats_the_reason_it_coincides_with() -> None:
    ids = letters("a STOP")
    answer = whole(transcript(stop=("STOP",)), one_by_one(ids, LENGTH))
    assert (answer.text, answer.finish_reason, answer.stop_reason) == ("a ", "stop", "STOP")
    ids = [*letters("a STO"), END_ID]
    answer = whole(transcript(stop=("STOP",)), one_by_one(ids, stopped(END_ID)))
    assert (answer.text, answer.stop_reason) == ("a STO", None)


@DELIVERY
@pytest.mark.parametrize(("min_tokens", "kept"), [(2, ""), (3, "END "), (6, "END "), (7, "END END ")])
def test_stop_strings_wait_for_min_tokens(deliver: Any, min_tokens: int, kept: str) -> None:
    ids = letters("END END END")
    answer = whole(transcript(stop=("END",), min_tokens=min_tokens), deliver(ids, LENGTH))
    assert answer.text == kept


@DELIVERY
def test_a_character_left_unfinished_is_a_replacement_at_the_end(deliver: Any) -> None:
    ids = letters("a日")[:-1]
    assert whole(transcript(), deliver(ids, LENGTH)).text == f"a{LOST}"
    pieces = [transcript().add(update) for update in one_by_one(ids, LENGTH)]
    assert all(piece and piece.token_ids for piece in pieces)


def logprobs(*top: int) -> Logprobs:
    values = [-0.5 - at for at in range(len(top))]
    return Logprobs(logprob=-0.25, rank=1, top_ids=pack_i32(top), top_logprobs=pack_f32(values))


def test_log_probabilities_say_where_each_token_begins() -> None:
    a, *parts = letters("a日")
    ids = [a, *parts, *encode(" fox")]
    updates = [
        Update(ids[:2], [logprobs(a, parts[0]), logprobs()]),
        Update(ids[2:], [logprobs() for _ in ids[2:]], finished=LENGTH),
    ]
    answer = whole(transcript(logprobs=2), updates)
    assert [entry.token.token_id for entry in answer.logprobs] == ids
    assert [entry.text_offset for entry in answer.logprobs][:5] == [0, 1, 1, 1, 2]
    first, second = answer.logprobs[:2]
    assert (first.token.text, first.token.data, first.token.logprob) == ("a", b"a", -0.25)
    assert [(top.token_id, top.logprob) for top in first.top] == [(a, -0.5), (parts[0], -1.5)]
    assert (second.token.text, second.token.data) == (LOST, "日".encode()[:1])


def test_log_probabilities_end_with_the_stop_string() -> None:
    ids = letters("a.b")
    answer = whole(transcript(logprobs=0, stop=(".",)), [Update(ids, [logprobs()] * 3)])
    assert [entry.token.token_id for entry in answer.logprobs] == ids[:2]


def test_log_probabilities_of_the_prompt_come_with_the_first_piece() -> None:
    prompt = tiny.byte_level().encode("日 fox")
    request = GenerationRequest("name", tuple(prompt), SamplingParams(prompt_logprobs=1))
    answer = Transcript(tiny.byte_level(), request)
    told = [logprobs(token_id) for token_id in prompt[1:]]
    assert answer.add(Update(prompt_logprobs=told[:2])) is None
    first = answer.add(Update(letters("a"), prompt_logprobs=told[2:]))
    second = answer.add(Update(letters("b")))
    assert first
    assert second
    assert second.prompt_logprobs == ()
    assert first.prompt_logprobs[0] is None
    entries = [entry for entry in first.prompt_logprobs if entry]
    assert [entry.token.token_id for entry in entries] == prompt[1:]
    assert [entry.top[0].token_id for entry in entries] == prompt[1:]
    assert entries[0].text_offset == 0  # the begin token is not in the text
    assert entries[-1].text_offset + len(entries[-1].token.text) == len("日 fox")


@pytest.mark.parametrize(
    ("params", "update"),
    [
        ({"logprobs": 1}, Update([1, 2], [logprobs()])),
        ({"prompt_logprobs": 1}, Update([1])),
        ({}, Update([1], finished=Finished(reason=FINISH_REASON_UNSPECIFIED))),
    ],
)
def test_a_scheduler_that_says_nonsense_is_an_error(params: dict[str, Any], update: Update) -> None:
    with pytest.raises(ProtocolError):
        transcript(**params).add(update)
