"""Token ids to text, as the tokens come.

Tokens spell bytes, so the text is an incremental UTF-8 decoding of the bytes joined. A character whose bytes
are not all there yet waits (at most three bytes do). Bytes that can no longer become a character are U+FFFD
at once, by Unicode's practice of one U+FFFD for each maximal ill-formed part (The Unicode Standard, 3.9).
"""

import codecs
from collections.abc import Sequence

from gateway.tokenizing import Tokenizer

_UTF8 = codecs.getincrementaldecoder("utf-8")
_TAIL = 8  # tokens: enough of the prompt for the three bytes, at most, of a character it leaves unfinished


class Detokenizer:
    """The text of one answer. Whatever the chunks, their texts join to the decoding of all tokens."""

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], skip_special_tokens: bool) -> None:
        """`prompt_ids` [num_prompt_tokens], which the answer continues, may leave a character unfinished."""
        self._vocabulary = tokenizer.vocabulary
        self._skip_special = skip_special_tokens
        self._utf8 = _UTF8("replace")
        self._utf8.decode(self._vocabulary.join(prompt_ids[-_TAIL:], skip_special_tokens))
        self._at_start = self._vocabulary.strips_first_space and not any(
            self._vocabulary.join((token_id,), skip_special_tokens) for token_id in prompt_ids
        )

    def add(self, token_ids: Sequence[int]) -> str:
        """The text that `token_ids` complete; empty where they end inside a character."""
        data = self._vocabulary.join(token_ids, self._skip_special)
        if self._at_start and data:
            data = data.removeprefix(b" ")
            self._at_start = False
        return self._utf8.decode(data)

    def flush(self) -> str:
        """At the end: U+FFFD for a character that never got all its bytes, else nothing."""
        return self._utf8.decode(b"", True)
