from typing import Any

import pytest
from tokenizers import decoders

from batchyard.errors import ModelError
from gateway.vocabulary import Spelling, Vocabulary, read_spelling
from tests.gateway import tiny_tokenizers as tiny

REPLACE = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
FALLBACK, FUSE = {"type": "ByteFallback"}, {"type": "Fuse"}


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "decoders": list(steps)}


@pytest.mark.parametrize(
    ("decoder", "spelling"),
    [
        ({"type": "ByteLevel", "add_prefix_space": True}, Spelling(byte_level=True)),
        (sequence({"type": "ByteLevel"}), Spelling(byte_level=True)),
        (sequence(REPLACE, FALLBACK, FUSE, STRIP), Spelling(False, "▁", True, True)),  # Llama 2
        (sequence(REPLACE, FALLBACK, FUSE), Spelling(False, "▁", True, False)),  # Gemma
        (sequence(sequence(REPLACE, FALLBACK), FUSE), Spelling(False, "▁", True, False)),
        ({"type": "Metaspace", "replacement": "▁"}, Spelling(False, "▁", False, True)),
        (
            sequence(FALLBACK, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never"}),
            Spelling(False, "▁", True, False),
        ),
    ],
)
def test_the_decoders_of_the_families_we_serve_are_read(decoder: dict[str, Any], spelling: Spelling) -> None:
    assert read_spelling(decoder) == spelling


@pytest.mark.parametrize(
    "decoder",
    [
        FUSE,
        {"type": "WordPiece", "prefix": "##", "cleanup": True},
        sequence(REPLACE, STRIP),  # it would strip every token
        sequence(REPLACE, {"type": "ByteLevel"}),
        sequence({"type": "Replace", "pattern": {"Regex": "x+"}, "content": " "}),
    ],
)
def test_a_decoder_of_another_kind_is_refused(decoder: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="decoder"):
        read_spelling(decoder)


@pytest.mark.parametrize(
    ("token", "spelled"),
    [
        ("ĠHello", b" Hello"),
        ("Ċ", b"\n"),
        ("æĹ", b"\xe6\x97"),
        ("日", "日".encode()),  # not of the alphabet: an added token
        ("a b", b"a b"),
        ("\x80", "\x80".encode()),  # Latin-1, but not of the alphabet
    ],
)
def test_byte_level_tokens_spell_bytes(token: str, spelled: bytes) -> None:
    assert Spelling(byte_level=True).of(token) == spelled


@pytest.mark.parametrize(
    ("token", "spelled"),
    [
        ("▁Hello", b" Hello"),
        ("a▁▁", b"a  "),
        ("<0xE6>", b"\xe6"),
        ("<0xZZ>", b"<0xZZ>"),
        ("<0x123>", b"<0x123>"),
        ("日", "日".encode()),
    ],
)
def test_sentencepiece_tokens_spell_text_or_a_byte(token: str, spelled: bytes) -> None:
    assert Spelling(space="▁", byte_fallback=True).of(token) == spelled


def test_without_a_decoder_tokens_are_words() -> None:
    spelling = read_spelling(None)
    assert spelling.of("t5") == b" t5"
    assert spelling.strips_first_space


def test_a_byte_token_is_text_without_byte_fallback() -> None:
    assert Spelling(space="▁").of("<0xE6>") == b"<0xE6>"


def test_a_vocabulary_has_every_token_and_nothing_for_other_ids() -> None:
    backend = tiny.byte_level_backend()
    vocabulary = Vocabulary.of(backend)
    assert len(vocabulary) == backend.get_vocab_size()
    begin = backend.token_to_id(tiny.BEGIN)
    assert vocabulary.piece(begin) == tiny.BEGIN.encode()
    assert vocabulary.join([begin, 9, 99_999, -1], skip_special_tokens=True) == vocabulary.piece(9)
    assert vocabulary.piece(99_999) == vocabulary.piece(-1) == b""


def test_all_256_bytes_can_be_spelled() -> None:
    for backend in (tiny.byte_level_backend(), tiny.sentencepiece_backend()):
        vocabulary = Vocabulary.of(backend)
        pieces = {vocabulary.piece(token_id) for token_id in range(len(vocabulary))}
        assert pieces.issuperset(bytes([byte]) for byte in range(256))


def test_a_tokenizer_without_a_known_decoder_is_refused() -> None:
    backend = tiny.byte_level_backend()
    backend.decoder = decoders.WordPiece()
    with pytest.raises(ModelError, match="WordPiece"):
        Vocabulary.of(backend)
