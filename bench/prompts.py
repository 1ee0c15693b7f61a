"""The prompts that benchmarks send: pieces of the demo model's held-out text, of mixed lengths."""

import json
import random
from pathlib import Path

from transformers import AutoTokenizer

from batchyard.demo import HELD_OUT

SHORTEST, LONGEST = 8, 256  # tokens


class Text:
    """A model's tokenizer: prompts out of it, and answers into text as the service writes them."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder)

    def prompts(self, count: int) -> list[list[int]]:
        """`count` prompts as token ids, no two alike, SHORTEST to LONGEST long; always the same ones."""
        entries = json.loads(HELD_OUT.read_text(encoding="utf-8"))
        text = "\n\n".join(entry["text"] for entry in entries if entry["kind"] != "chat")
        ids = self._tokenizer.encode(text, add_special_tokens=False, verbose=False)
        begin = self._tokenizer.encode("")
        random_lengths = random.Random(0)
        lengths = [random_lengths.randint(SHORTEST, LONGEST) for _ in range(count)]
        if sum(lengths) > len(ids):
            raise ValueError(f"the held-out text has {len(ids)} tokens, too few for {count} prompts")
        prompts, start = [], 0
        for length in lengths:
            prompts.append([*begin, *ids[start : start + length - len(begin)]])
            start += length
        return prompts

    def decode(self, ids: list[int]) -> str:
        """The text of `ids`, special tokens included."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
