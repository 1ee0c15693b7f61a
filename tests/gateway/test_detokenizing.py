from collections.abc import Callable, Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.detokenizing import Detokenizer
from gateway.tokenizing import Tokenizer
from tests.gateway import tiny_tokenizers as tiny

LOST = "\N{REPLACEMENT CHARACTER}"
KINDS = pytest.mark.parametrize("kind", [tiny.byte_level, tiny.sentencepiece])

# Whatever can be a string, with a leaning to the characters that are split over tokens.
TEXTS = st.text() | st.text(st.sampled_from("a ▁\n日本é👩‍✨\ufffd"))


def chunked(ids: Sequence[int], cuts: Sequence[int]) -> list[Sequence[int]]:
    """`ids` in chunks of the sizes `cuts`, over and over; some may be empty."""
    chunks, at, turn = [], 0, 0
    while at < len(ids):
        size = cuts[turn % len(cuts)] if cuts else 1
        chunks.append(ids[at : at + size])
        at, turn = at + size, turn + 1
    return chunks


CUTS = st.lists(st.integers(0, 5), max_size=4).filter(lambda cuts: not cuts or any(cuts))


def stream(tokenizer: Tokenizer, chunks: Sequence[Sequence[int]], prompt: Sequence[int] = ()) -> list[str]:
    detokenizer = Detokenizer(tokenizer, prompt, skip_special_tokens=True)
    return [*map(detokenizer.add, chunks), detokenizer.flush()]


@KINDS
@given(text=TEXTS, cuts=CUTS)
def test_increments_join_to_the_text(kind: Callable[[], Tokenizer], text: str, cuts: list[int]) -> None:
    tokenizer = kind()
    ids = tokenizer.encode(text)
    parts = stream(tokenizer, chunked(ids, cuts))
    if kind is tiny.sentencepiece:
        text = text.replace("▁", " ")  # which it cannot tell from a space
    assert "".join(parts) == text == tokenizer.decode(ids) == tokenizer._backend.decode(ids)
    assert all(LOST not in part for part in parts) or LOST in text


@KINDS
@given(data=st.data(), cuts=CUTS)
def test_increments_of_any_tokens_join_to_the_decoding_of_all(
    kind: Callable[[], Tokenizer], data: st.DataObject, cuts: list[int]
) -> None:
    tokenizer = kind()
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 10)))
    assert "".join(stream(tokenizer, chunked(ids, cuts))) == tokenizer.decode(ids)


@given(data=st.data())
@example(data=None).via("every byte that begins a character, then one that cannot follow")
def test_byte_level_decoding_is_that_of_the_library_for_any_bytes(data: st.DataObject | None) -> None:
    tokenizer = tiny.byte_level()
    if data is None:
        raw = b"".join(bytes([lead, 0x80, 0x41]) for lead in range(0x80, 0x100))
    else:
        raw = data.draw(st.binary())
    ids = [tiny.byte_token(tokenizer, byte) for byte in raw]
    assert tokenizer.decode(ids) == tokenizer._backend.decode(ids) == raw.decode(errors="replace")
    assert "".join(stream(tokenizer, chunked(ids, []))) == raw.decode(errors="replace")


@KINDS
def test_a_character_appears_with_its_last_byte(kind: Callable[[], Tokenizer]) -> None:
    tokenizer = kind()
    ids = [tiny.byte_token(tokenizer, byte) for byte in "é👩".encode()]
    assert stream(tokenizer, [[token_id] for token_id in ids]) == ["", "é", "", "", "", "👩", ""]


@KINDS
def test_bytes_that_cannot_become_a_character_are_given_up_at_once(kind: Callable[[], Tokenizer]) -> None:
    tokenizer = kind()
    ids = [tiny.byte_token(tokenizer, byte) for byte in b"\xff\xe6\x97a\xe6"]
    assert stream(tokenizer, [[i] for i in ids]) == [LOST, "", "", f"{LOST}a", "", LOST]


def test_the_first_space_belongs_to_the_answer_where_a_prompt_comes_before() -> None:
    tokenizer = tiny.sentencepiece()
    prompt, answer = tokenizer.encode("The quick"), tokenizer.encode("brown", add_special_tokens=False)
    assert "".join(stream(tokenizer, [answer], prompt)) == " brown"
    assert "".join(stream(tokenizer, [answer], prompt[:1])) == "brown"  # after the begin token alone
    assert "".join(stream(tokenizer, [answer])) == "brown"


def test_an_answer_may_finish_a_character_that_its_prompt_begins() -> None:
    tokenizer = tiny.byte_level()
    first, second, third = (tiny.byte_token(tokenizer, byte) for byte in "日".encode())
    assert "".join(stream(tokenizer, [[third]], [first, second])) == "日"
    assert "".join(stream(tokenizer, [[third]], [second])) == LOST


@pytest.mark.parametrize(("skip", "text"), [(True, "ab<plain>"), (False, f"a{tiny.TURN}b<plain>")])
def test_special_tokens_are_left_out_on_request(skip: bool, text: str) -> None:
    tokenizer = tiny.byte_level()
    ids = tokenizer.encode(f"a{tiny.TURN}b<plain>", add_special_tokens=False)
    detokenizer = Detokenizer(tokenizer, (), skip_special_tokens=skip)
    assert detokenizer.add(ids) + detokenizer.flush() == text
    assert tokenizer.decode(ids, skip) == text == tokenizer._backend.decode(ids, skip_special_tokens=skip)


def test_a_special_token_within_a_character_is_skipped_over() -> None:
    tokenizer = tiny.byte_level()
    first, second, third = (tiny.byte_token(tokenizer, byte) for byte in "日".encode())
    (turn,) = tokenizer.encode(tiny.TURN, add_special_tokens=False)
    assert stream(tokenizer, [[first], [turn], [second, third]]) == ["", "", "日", ""]


def test_metaspace_texts_come_back() -> None:
    tokenizer = tiny.unigram()
    ids = tokenizer.encode("the lazy  dog")
    assert "".join(stream(tokenizer, chunked(ids, []))) == "the lazy  dog" == tokenizer._backend.decode(ids)
