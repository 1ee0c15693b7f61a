"""What each token id spells, in bytes.

A token is bytes, not text: a character may be split over tokens. With the bytes at hand, the text of any
tokens is their bytes joined and read as UTF-8, which makes incremental detokenizing exact and O(1) per token.

Three alphabets are in use, and `tokenizer.json` says which by its decoder:

    ByteLevel            GPT-2, Llama 3, Qwen: each character of a token stands for one byte
    Replace, Metaspace   SentencePiece, Llama 2, Mistral: UTF-8 with "▁" for a space, and <0xNN> for one byte
    none                 whole words, as in models made for measuring: a space between each two
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tokenizers

from batchyard.errors import ModelError

_NOT_A_BYTE = 0xE000  # anything Latin-1 cannot encode: sends a token that is no byte string to the fallback
_BYTE_TOKEN_LENGTH = len("<0x00>")


def _byte_level_alphabet() -> dict[int, int]:
    """Maps each character (code point) of GPT-2's byte-level alphabet to the byte it stands for.

    Printable Latin-1 stands for itself; the other bytes, in order, are the characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(0x100)) - set(printable))
    alphabet = dict.fromkeys(range(0x100), _NOT_A_BYTE)
    alphabet.update((byte, byte) for byte in printable)
    alphabet.update((0x100 + at, byte) for at, byte in enumerate(others))
    return alphabet


_ALPHABET = _byte_level_alphabet()


@dataclass(frozen=True, slots=True)
class Spelling:
    """How a tokenizer's tokens become bytes."""

    byte_level: bool = False
    space: str | None = None  # what stands for a space, where not byte-level
    byte_fallback: bool = False  # a token <0xNN> is the byte NN
    strips_first_space: bool = False  # encoding put a space before the text; decoding takes it away
    words: bool = False  # a token is a word, with a space before it

    def of(self, token: str) -> bytes:
        """The bytes of a token that is not special."""
        if self.words:
            return b" " + token.encode()
        if self.byte_level:
            try:
                return token.translate(_ALPHABET).encode("latin-1")
            except UnicodeEncodeError:  # an added token, written as it reads
                return token.encode()
        if self.byte_fallback and token.startswith("<0x") and len(token) == _BYTE_TOKEN_LENGTH:
            try:
                return bytes.fromhex(token[3:5])
            except ValueError:
                return token.encode()
        return (token.replace(self.space, " ") if self.space else token).encode()


def read_spelling(decoder: Mapping[str, Any] | None) -> Spelling:
    """Reads `decoder` of a tokenizer.json. Raises ModelError where a step of it is not one we know."""
    if decoder is None:
        return Spelling(words=True, strips_first_space=True)
    steps = _steps(decoder)
    byte_level = byte_fallback = strips = fused = False
    space: str | None = None
    for step in steps:
        match step:
            case {"type": "ByteLevel"}:
                byte_level = True
            case {"type": "ByteFallback"}:
                byte_fallback = True
            case {"type": "Fuse"}:
                fused = True
            case {"type": "Replace", "pattern": {"String": str(pattern)}, "content": " "} if pattern:
                space = pattern
            case {"type": "Strip", "content": " ", "start": 0 | 1 as start, "stop": 0} if fused:
                strips = strips or start == 1
            case {"type": "Metaspace", "replacement": str(replacement)}:
                space = replacement
                strips = strips or step.get("prepend_scheme", "always") != "never"
            case _:
                raise ModelError(f"the tokenizer's decoder has a step that is not supported: {step}")
    if byte_level == (space is not None):
        raise ModelError("the tokenizer's decoder is neither byte-level nor of SentencePiece's kind")
    return Spelling(byte_level, space, byte_fallback, strips)


def _steps(decoder: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    if decoder.get("type") != "Sequence":
        return (decoder,)
    return [step for inner in decoder["decoders"] for step in _steps(inner)]


class Vocabulary:
    """The bytes of every token. Ids that no token has spell nothing: models pad their embeddings."""

    def __init__(self, pieces: Sequence[bytes], special: Iterable[int], strips_first_space: bool) -> None:
        """`pieces` [num_tokens] are the bytes by token id, `special` the ids of the special ones."""
        self._pieces = pieces
        self.longest = max(map(len, pieces), default=0)  # bytes of one token
        self._without_special = list(pieces)
        for token_id in special:
            self._without_special[token_id] = b""
        self.strips_first_space = strips_first_space

    @classmethod
    def of(cls, backend: tokenizers.Tokenizer) -> "Vocabulary":
        """Reads it from a tokenizer. Raises ModelError where its decoder is not supported."""
        decoder = json.loads(backend.decoder.__getstate__()) if backend.decoder else None
        spelling = read_spelling(decoder)
        added = backend.get_added_tokens_decoder()
        special = {token_id: token.content for token_id, token in added.items() if token.special}
        vocabulary = backend.get_vocab(with_added_tokens=True)
        pieces = [b""] * (max(vocabulary.values(), default=-1) + 1)
        for token, token_id in vocabulary.items():
            pieces[token_id] = spelling.of(token)
        for token_id, content in special.items():
            pieces[token_id] = content.encode()
        return cls(pieces, special, spelling.strips_first_space)

    def __len__(self) -> int:
        """One more than the largest token id."""
        return len(self._pieces)

    def piece(self, token_id: int) -> bytes:
        """The bytes of one token; a special token's are its name."""
        return self._pieces[token_id] if 0 <= token_id < len(self._pieces) else b""

    def join(self, token_ids: Iterable[int], skip_special_tokens: bool) -> bytes:
        """The bytes of `token_ids` in order, any first space included."""
        pieces = self._without_special if skip_special_tokens else self._pieces
        size = len(pieces)
        return b"".join([pieces[token_id] for token_id in token_ids if 0 <= token_id < size])
