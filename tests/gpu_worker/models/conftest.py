"""Tiny random models of transformers saved to disk, and a paged cache to run ours on."""

import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedModel

from gpu_worker.kernels.metadata import AttentionMetadata
from gpu_worker.kernels.reference import TorchOps
from gpu_worker.models import LlamaModel, load_model

CPU = torch.device("cpu")
TINY = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    # So large that the logits are far apart: greedy choices must not hang on the last bit.
    "initializer_range": 0.25,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}


class PagedSequences:
    """Sequences on one paged cache, run several at a time: new ones join while others decode."""

    def __init__(
        self, model: LlamaModel, prompts: list[list[int]], max_tokens: int, block_size: int = 4
    ) -> None:
        self.model = model
        self.block_size = block_size
        self.prompts = prompts
        self.tokens = [list(prompt) for prompt in prompts]
        self.computed = [0] * len(prompts)
        self.max_lens = [len(prompt) + max_tokens for prompt in prompts]
        needed = [-(-length // block_size) for length in self.max_lens]
        blocks = list(range(sum(needed) + 3))
        random.Random(0).shuffle(blocks)
        self.blocks = [[blocks.pop() for _ in range(count)] for count in needed]
        config = model.config
        shape = (sum(needed) + 3, block_size, config.num_kv_heads, config.head_dim)
        # NaN where nothing was written: whoever reads it is found out.
        self.caches = [
            (torch.full(shape, torch.nan, dtype=model.dtype), torch.full(shape, torch.nan, dtype=model.dtype))
            for _ in range(config.num_layers)
        ]

    def generate(self, chunk_sizes: list[int]) -> list[list[int]]:
        """Greedy tokens of every sequence. Sequence s joins at step 2 s; chunk sizes take turns."""
        step = 0
        while any(len(tokens) < most for tokens, most in zip(self.tokens, self.max_lens, strict=True)):
            query_lens = {}
            for seq, tokens in enumerate(self.tokens):
                left = len(tokens) - self.computed[seq]
                if step >= 2 * seq and len(tokens) < self.max_lens[seq]:
                    query_lens[seq] = min(left, chunk_sizes[(step + seq) % len(chunk_sizes)])
            self._step(query_lens)
            step += 1
        return [tokens[len(prompt) :] for tokens, prompt in zip(self.tokens, self.prompts, strict=True)]

    def hidden(self, query_lens: dict[int, int]) -> torch.Tensor:
        """Run the next `query_lens[s]` tokens of each sequence s; decoding ones must come first."""
        input_ids = [
            token
            for seq, count in query_lens.items()
            for token in self.tokens[seq][self.computed[seq] : self.computed[seq] + count]
        ]
        with torch.inference_mode():
            hidden = self.model.forward(torch.tensor(input_ids), self.metadata(query_lens), self.caches)
        for seq, count in query_lens.items():
            self.computed[seq] += count
        return hidden

    def _step(self, query_lens: dict[int, int]) -> None:
        query_lens = dict(sorted(query_lens.items(), key=lambda item: not self._decodes(item[0])))
        hidden = self.hidden(query_lens)
        ends = torch.tensor(list(query_lens.values())).cumsum(0) - 1
        sampled = self.model.logits(hidden[ends]).argmax(-1).tolist()
        for seq, token in zip(query_lens, sampled, strict=True):
            if self.computed[seq] == len(self.tokens[seq]):
                self.tokens[seq].append(token)

    def _decodes(self, seq: int) -> bool:
        return self.computed[seq] >= len(self.prompts[seq])

    def metadata(self, query_lens: dict[int, int]) -> AttentionMetadata:
        counts = list(query_lens.values())
        seq_lens = [self.computed[seq] + count for seq, count in query_lens.items()]
        positions, slots = [], []
        for (seq, count), seq_len in zip(query_lens.items(), seq_lens, strict=True):
            for position in range(seq_len - count, seq_len):
                positions.append(position)
                block = self.blocks[seq][position // self.block_size]
                slots.append(block * self.block_size + position % self.block_size)
        width = max(len(self.blocks[seq]) for seq in query_lens)
        tables = [self.blocks[seq] + [0] * (width - len(self.blocks[seq])) for seq in query_lens]
        num_decodes = sum(self._decodes(seq) for seq in query_lens)
        return AttentionMetadata(
            query_start=torch.tensor([0, *counts]).cumsum(0).to(torch.int32),
            seq_lens=torch.tensor(seq_lens, dtype=torch.int32),
            block_tables=torch.tensor(tables, dtype=torch.int32),
            positions=torch.tensor(positions, dtype=torch.int32),
            slots=torch.tensor(slots, dtype=torch.int32),
            counts=torch.tensor([num_decodes, len(query_lens), 0], dtype=torch.int32),
            num_decodes=num_decodes,
            num_chunks=len(query_lens) - num_decodes,
            max_seq_len=max(seq_lens),
        )


def _make_model(
    folder: Path, config_class: type[PreTrainedConfig], **changes: object
) -> tuple[Path, PreTrainedModel]:
    torch.manual_seed(0)
    reference = AutoModelForCausalLM.from_config(config_class(**{**TINY, **changes})).eval()
    with torch.no_grad():
        # As transformers makes them, all biases are 0 and all norms 1: a model could do without them.
        for name, parameter in reference.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.2)
            elif name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
    reference.save_pretrained(folder)
    return folder, reference


def _load(folder: Path, **changes: object) -> LlamaModel:
    settings = {
        "load_format": "auto",
        "dtype": torch.float32,
        "device": CPU,
        "ops": TorchOps(),
        "max_model_len": 128,
        "seed": 0,
        "progress": lambda done, total: None,
    }
    return load_model(folder, **{**settings, **changes})


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., tuple[Path, PreTrainedModel]]:
    """make_model(config_class, **changes): a random tiny model, saved; (its folder, the model itself)."""
    return partial(_make_model, tmp_path)


@pytest.fixture
def load() -> Callable[..., LlamaModel]:
    """load(folder, **changes): load_model with settings that suit the tiny models."""
    return _load


@pytest.fixture
def paged() -> type[PagedSequences]:
    return PagedSequences


@pytest.fixture(scope="session")
def saved_llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel]:
    return _make_model(tmp_path_factory.mktemp("llama"), LlamaConfig)


@pytest.fixture
def llama_folder(saved_llama: tuple[Path, PreTrainedModel], tmp_path: Path) -> Path:
    """A tiny Llama's folder, the test's own to spoil."""
    return shutil.copytree(saved_llama[0], tmp_path / "llama")
