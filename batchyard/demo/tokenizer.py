"""Trains the tokenizer and writes the corpus as token ids: `python -m batchyard.demo.tokenizer --help`.

A byte-level BPE: every text, whatever its bytes, comes back as it was. A completion gets `<|begin|>` from the
tokenizer, as with Llama; the chat template writes its own, so whoever applies the template encodes the result
with `add_special_tokens=False`, as `transformers` does.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

VOCABULARY = 6144
MAX_POSITIONS = 2048

BEGIN, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL = (PAD, BEGIN, END, SYSTEM, USER, ASSISTANT)

# A word with the space before it; up to three digits; a run of punctuation; the end of a line with what is
# blank before it; indentation, all but its last space.
_PIECES = Regex(
    r"[^\r\n\p{L}\p{N}_]?[\p{L}_]+|\p{N}{1,3}| ?[^\s\p{L}\p{N}_]+|\s*[\r\n]+|\s+(?!\S)|\s+",
)

CHAT_TEMPLATE = (
    "<|begin|>"
    "{%- for message in messages %}"
    "{%- if message['role'] not in ('system', 'user', 'assistant') %}"
    "{{- raise_exception('the roles are system, user and assistant, not ' + message['role']) }}"
    "{%- endif %}"
    "{{- '<|' + message['role'] + '|>' + message['content'] | trim + '<|end|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)


def read_corpus(path: Path) -> Iterator[dict[str, Any]]:
    """The documents that `corpus.py` wrote, one JSON object a line or a JSON list."""
    with path.open(encoding="utf-8") as file:
        if path.suffix == ".json":
            yield from json.load(file)
        else:
            yield from map(json.loads, file)


def train(documents: Iterator[dict[str, Any]]) -> PreTrainedTokenizerFast:
    """Learns the merges. A conversation repeats the documentation's text, so only its first ones count."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_PIECES, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_training_texts(documents), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A",
        pair=f"{BEGIN} $A {BEGIN} $B",
        special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_POSITIONS,
        padding_side="left",
    )


def save(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes the tokenizer's files, under the class name that older versions of `transformers` know too."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(config, indent=2) + "\n")


def _training_texts(documents: Iterator[dict[str, Any]]) -> Iterator[str]:
    for at, document in enumerate(documents):
        if document["kind"] in ("source", "docs"):
            yield document["text"]
        elif document["kind"] == "chat" and at % 4 == 0:
            for message in document["messages"]:
                yield message["content"]


def encode(tokenizer: PreTrainedTokenizerFast, document: dict[str, Any]) -> tuple[list[int], list[bool]]:
    """A document's token ids, and for each whether the model is trained to say it.

    Of a conversation that is what the assistant says, with the end of its turn; of a text, everything.
    """
    if "text" in document:
        ids = [*tokenizer.encode(document["text"]), tokenizer.eos_token_id]
        return ids, [False] + [True] * (len(ids) - 1)
    ids, said = [tokenizer.bos_token_id], [False]
    for message in document["messages"]:
        role = tokenizer.convert_tokens_to_ids(f"<|{message['role']}|>")
        content = tokenizer.encode(message["content"].strip(), add_special_tokens=False)
        ids += [role, *content, tokenizer.eos_token_id]
        said += [False] + [message["role"] == "assistant"] * (len(content) + 1)
    return ids, said


def pack(tokenizer: PreTrainedTokenizerFast, documents: Iterator[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Arrays: `tokens` (uint16), `said` (bits), `starts` (int64), `kinds`, `bytes` (int64)."""
    tokens: list[np.ndarray] = []
    said: list[np.ndarray] = []
    starts, kinds, sizes = [0], [], []
    for document in documents:
        ids, flags = encode(tokenizer, document)
        tokens.append(np.asarray(ids, dtype=np.uint16))
        said.append(np.asarray(flags, dtype=np.bool_))
        starts.append(starts[-1] + len(ids))
        kinds.append(document["kind"])
        sizes.append(_trained_bytes(document))
    return {
        "tokens": np.concatenate(tokens),
        "said": np.packbits(np.concatenate(said)),
        "starts": np.asarray(starts, dtype=np.int64),
        "kinds": np.asarray(kinds),
        "bytes": np.asarray(sizes, dtype=np.int64),
    }


def _trained_bytes(document: dict[str, Any]) -> int:
    if "text" in document:
        return len(document["text"].encode())
    return sum(len(m["content"].encode()) for m in document["messages"] if m["role"] == "assistant")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--corpus", type=Path, required=True, help="the training documents, from corpus.py")
    parser.add_argument("--held-out", type=Path, required=True, help="the held-out documents, from corpus.py")
    parser.add_argument("--tokenizer", type=Path, required=True, help="a folder for the tokenizer")
    parser.add_argument("--out", type=Path, required=True, help="a .npz file for the token ids of both")
    arguments = parser.parse_args()
    logging.set_verbosity_error()  # it warns of texts longer than the context
    tokenizer = train(read_corpus(arguments.corpus))
    save(tokenizer, arguments.tokenizer)
    arrays = pack(tokenizer, read_corpus(arguments.corpus))
    held_out = pack(tokenizer, read_corpus(arguments.held_out))
    both = arrays | {f"held_out_{name}": array for name, array in held_out.items()}
    np.savez_compressed(arguments.out, allow_pickle=False, **both)
    for name, packed in (("training", arrays), ("held out", held_out)):
        count = len(packed["tokens"])
        print(f"{name}: {count:,} tokens, {packed['bytes'].sum() / count:.2f} trained bytes per token")


if __name__ == "__main__":
    main()
