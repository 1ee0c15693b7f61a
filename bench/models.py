"""Model folders of well-known shapes without weights: `python -m bench.models llama-8b DIR`.

A folder has a config.json as Hugging Face writes it and a tokenizer of made-up words, which is all that
`batchyard serve --load-format dummy` (or another engine's like of it) needs; nothing is downloaded.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers

MAX_POSITIONS = 40960
_SPECIAL = ("<s>", "</s>", "<unk>")


@dataclass(frozen=True, slots=True)
class Shape:
    """The hyper-parameters of a model of the Llama family."""

    family: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    rope_theta: float
    tied: bool
    """Whether the embedding is the LM head too."""

    def config(self) -> dict[str, Any]:
        """What config.json says."""
        is_llama = self.family == "llama"
        return {
            "architectures": ["LlamaForCausalLM" if is_llama else "Qwen3ForCausalLM"],
            "model_type": self.family,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.intermediate,
            "vocab_size": self.vocab,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": 1e-5 if is_llama else 1e-6,
            "tie_word_embeddings": self.tied,
            "max_position_embeddings": MAX_POSITIONS,
            "hidden_act": "silu",
            "attention_bias": False,
            "initializer_range": 0.02,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "torch_dtype": "bfloat16",
        }


SHAPES: Mapping[str, Shape] = {
    "llama-8b": Shape("llama", 4096, 32, 32, 8, 128, 14336, 128256, 500_000.0, tied=False),
    "qwen3-0.6b": Shape("qwen3", 1024, 28, 16, 8, 128, 3072, 151936, 1_000_000.0, tied=True),
    # For trying a benchmark on a small machine.
    "llama-tiny": Shape("llama", 256, 4, 8, 4, 32, 768, 32000, 10_000.0, tied=True),
}


def write_model(shape: str, folder: Path) -> Path:
    """Writes the folder of `shape`, made if need be, and returns it. Raises KeyError for an unknown shape."""
    config = SHAPES[shape].config()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    _write_tokenizer(SHAPES[shape].vocab, folder)
    return folder


def _write_tokenizer(vocab: int, folder: Path) -> None:
    """A word per id: `t17` is 17."""
    words = {word: number for number, word in enumerate(_SPECIAL)}
    words |= {f"t{number}": number for number in range(len(_SPECIAL), vocab)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "model_max_length": MAX_POSITIONS,
        "clean_up_tokenization_spaces": False,
        "chat_template": "{% for message in messages %}{{ message['content'] }} {% endfor %}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))


def main() -> None:
    """Writes one folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    print(write_model(arguments.shape, arguments.folder))


if __name__ == "__main__":
    main()
