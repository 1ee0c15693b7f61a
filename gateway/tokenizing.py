"""Text to token ids and back, and chat messages to a prompt, by the tokenizer in a model's folder."""

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from batchyard.errors import InvalidRequest, ModelError
from gateway.chat_template import ChatTemplate
from gateway.vocabulary import Vocabulary

_THREAD_FROM = 2_000  # characters: about a millisecond of encoding; a hop to a thread and back costs a tenth

# Characters that Unicode's normal form puts together in one, at most (its longest decompositions).
_COMPOSED = 4

# The renderer's own arguments; the rest are the template's variables.
_RESERVED_OPTIONS = {
    *(
        "conversation",
        "conversations",
        "chat_template",
        "tokenize",
        "tokenizer_kwargs",
        "sanitize_control_tokens",
    ),
    *("padding", "truncation", "max_length"),
    *("return_tensors", "return_dict", "return_assistant_tokens_mask"),
}


class Tokenizer:
    """One model's tokenizer. Safe to use from several threads at once."""

    def __init__(self, tokenizer: Any, eos_ids: frozenset[int]) -> None:
        """`tokenizer` is a PreTrainedTokenizerFast. Raises ModelError where its decoder is not supported."""
        self._tokenizer = tokenizer
        self._backend: tokenizers.Tokenizer = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self.vocabulary = Vocabulary.of(self._backend)
        self.vocab_size = len(self.vocabulary)  # one more than the largest token id
        self.eos_ids = eos_ids  # an answer ends with any of these
        self._chats = ChatTemplate()
        # One thread, for the process takes one conversation at a time; the others are for encoding.
        self._chat_thread = ThreadPoolExecutor(1, thread_name_prefix="chats")

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Reads the tokenizer's files in `folder`; runs no code from there. Raises ModelError in one line."""
        if not folder.is_dir():
            raise ModelError(f"the model folder {folder} does not exist")
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # whatever the files' faults make the library raise
            raise ModelError(f"cannot read the tokenizer in {folder}: {_first_line(error)}") from error
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise ModelError(f"the tokenizer in {folder} has no tokenizer.json: this kind is not supported")
        eos_ids = _declared_eos_ids(folder)
        if tokenizer.eos_token_id is not None:
            eos_ids |= {tokenizer.eos_token_id}
        return cls(tokenizer, eos_ids)

    def least_tokens(self, characters: int) -> int:
        """How few tokens a text of so many characters can be: known without encoding it.

        A character is a byte at least, but tokenizers may first put several characters together in one (NFC).
        """
        return characters // (_COMPOSED * max(1, self.vocabulary.longest))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`; `add_special_tokens` adds the model's begin token, where it has one.

        Raises InvalidRequest where `text` is not Unicode text (it has a surrogate without its other half).
        """
        try:
            # A batch of one, for it frees the interpreter while it works; encode() would block every thread.
            [encoding] = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        except TypeError as error:
            raise InvalidRequest("the text holds a lone surrogate, which no character is") from error
        return encoding.ids

    async def encode_async(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """As `encode`; a long text is encoded in a thread, so that the event loop goes on."""
        if len(text) < _THREAD_FROM:
            return self.encode(text, add_special_tokens)
        return await asyncio.to_thread(self.encode, text, add_special_tokens)

    def prepare_chats(self) -> None:
        """Starts what renders chats, where there is a template for them, so that the first need not wait."""
        if self._tokenizer.chat_template:
            self._chats.start()

    def render_chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> list[int]:
        """Token ids of a conversation, by the model's chat template in transformers' sandbox. Blocks.

        `options` go to the template: `add_generation_prompt` (by default true, unless the final message is to
        be continued), `continue_final_message`, `tools`, and what the template itself defines. The template
        writes every special token, the begin token included. Raises InvalidRequest where there is no
        template, an option is not the template's, or the template refuses the messages or takes too long.
        """
        return self.encode(self._render(messages, options), add_special_tokens=False)

    async def render_chat_async(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> list[int]:
        """As `render_chat`, and does not block."""
        loop = asyncio.get_running_loop()
        text = await loop.run_in_executor(self._chat_thread, self._render, messages, options)
        return await self.encode_async(text, add_special_tokens=False)

    def _render(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> str:
        if not self._tokenizer.chat_template:
            raise InvalidRequest("this model has no chat template: use completions", "messages")
        if reserved := sorted(_RESERVED_OPTIONS & options.keys()):
            raise InvalidRequest(f"{reserved[0]!r} is not an option of a chat template")
        try:
            template = self._tokenizer.get_chat_template(tools=options.get("tools"))
        except ValueError as error:  # there are several, for other occasions
            raise InvalidRequest(_first_line(error), "messages") from error
        # A template asks whether there is such a key, not whether it is null.
        turns = [{key: value for key, value in turn.items() if value is not None} for turn in messages]
        final = {"add_generation_prompt": not options.get("continue_final_message")}
        return self._chats.render(template, turns, {**self._tokenizer.special_tokens_map, **final, **options})

    def decode(self, token_ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of `token_ids`; U+FFFD where their bytes are not UTF-8. Ids of no token spell nothing."""
        data = self.vocabulary.join(token_ids, skip_special_tokens)
        if self.vocabulary.strips_first_space:
            data = data.removeprefix(b" ")
        return data.decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """What one token spells: a part of UTF-8 text; a special token's name; nothing for an unknown id."""
        return self.vocabulary.piece(token_id)

    def token_text(self, token_id: int) -> str:
        """`token_bytes` as text, with U+FFFD where they are only a part of a character."""
        return self.token_bytes(token_id).decode("utf-8", "replace")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _declared_eos_ids(folder: Path) -> frozenset[int]:
    """`eos_token_id` in generation_config.json and config.json, each an int, a list of them, or absent."""
    declared: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if not path.exists():
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            value = content.get("eos_token_id")
        except (OSError, ValueError, AttributeError) as error:
            raise ModelError(f"cannot read {path}: {_first_line(error)}") from error
        ids = value if isinstance(value, list) else [value] if value is not None else []
        if not all(type(token_id) is int for token_id in ids):
            raise ModelError(f"{path}: eos_token_id must be a token id or a list of them, not {value!r}")
        declared.update(ids)
    return frozenset(declared)
