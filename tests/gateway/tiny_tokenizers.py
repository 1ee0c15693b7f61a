"""Small tokenizers of the two kinds there are, trained on the spot and loaded from a model folder."""

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from tokenizers import Tokenizer as Backend

from gateway.tokenizing import Tokenizer

BEGIN, END, TURN = "<|begin|>", "<|end|>", "<|turn|>"
TEXTS = [
    "The quick brown fox jumps over the lazy dog. How now, brown cow?",
    "def read_lines(path):\n    with open(path) as file:\n        return file.readlines()\n",
    "Größe, naïve, déjà vu; 日本語の文章; эта строка; 👩‍👩‍👧 ✨",
] * 20

CHAT_TEMPLATE = (
    "<|begin|>"
    "{% for message in messages %}"
    "{% if message.role == 'ghost' %}{{ raise_exception('no ghosts') }}{% endif %}"
    "{{ '<|turn|>' + message.role + '\n' + message.content + '<|end|>' }}"
    "{% endfor %}"
    "{% if tone %}{{ tone }}{% endif %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)


def write_folder(folder: Path, backend: Backend, begin: str, end: str, **config: Any) -> None:
    """A model folder's tokenizer files."""
    backend.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": begin, "eos_token": end, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def byte_level_backend() -> Backend:
    """As GPT-2, Llama 3 and Qwen have it."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=[BEGIN, END, TURN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.add_tokens([AddedToken("<plain>", special=False)])
    backend.post_processor = _begins_with(BEGIN, backend)
    return backend


def sentencepiece_backend() -> Backend:
    """As Llama 2 and Mistral have it: "▁" for a space and one before the text, bytes for what is unknown."""
    backend = Backend(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    names = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=names + [f"<0x{byte:02X}>" for byte in range(256)],
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS[:2], trainer)
    # The trainer can only reserve the byte tokens as special ones, which they are not.
    content = json.loads(backend.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in names]
    backend = Backend.from_str(json.dumps(content))
    backend.post_processor = _begins_with("<s>", backend)
    return backend


def unigram_backend() -> Backend:
    """As T5 has it: the decoder is Metaspace."""
    backend = Backend(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<s>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(TEXTS[:2], trainer)
    return backend


def _begins_with(begin: str, backend: Backend) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, backend.token_to_id(begin))]
    )


@functools.cache
def byte_level() -> Tokenizer:
    return byte_level_with(CHAT_TEMPLATE)


def byte_level_with(chat_template: str) -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        write_folder(Path(folder), byte_level_backend(), BEGIN, END, chat_template=chat_template)
        return Tokenizer.load(Path(folder))


@functools.cache
def sentencepiece() -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        write_folder(Path(folder), sentencepiece_backend(), "<s>", "</s>")
        return Tokenizer.load(Path(folder))


@functools.cache
def unigram() -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        write_folder(Path(folder), unigram_backend(), "<s>", "</s>")
        return Tokenizer.load(Path(folder))


def byte_token(tokenizer: Tokenizer, byte: int) -> int:
    """The token that spells one byte."""
    return next(i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i) == bytes([byte]))
