"""Writes a trained model as a folder that `transformers` loads, checks that it does, and lets it speak."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from batchyard.demo.network import Llama, Shape, masked_attention

CHATS = (
    "What does os.path.join do?",
    "What is a generator?",
    "How do I read a file line by line?",
    "What are the arguments of json.dumps?",
    "Who are you?",
    "What is the capital of France?",
)
COMPLETIONS = ("def read_lines(path):", "import os\n\n", "class Queue:\n", "The `json` module")


def as_bfloat16(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights as they are shipped. Tied: the output layer has none of its own."""
    return {name: weight.detach().to("cpu", torch.bfloat16).contiguous() for name, weight in weights.items()}


def save(folder: Path, shape: Shape, weights: dict[str, Tensor], tokenizer: Path) -> None:
    """Writes config.json, generation_config.json, model.safetensors and the tokenizer's files."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = AutoTokenizer.from_pretrained(tokenizer)
    special = {
        "bos_token_id": ids.bos_token_id,
        "eos_token_id": ids.eos_token_id,
        "pad_token_id": ids.pad_token_id,
    }
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "use_cache": True,
        "initializer_range": 0.02,
        "torch_dtype": "bfloat16",
        **vars(shape),
        **special,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps(special, indent=2) + "\n")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    for path in sorted(tokenizer.iterdir()):
        shutil.copy(path, folder / path.name)


def check(folder: Path, shape: Shape, tokens: list[int]) -> float:
    """The largest difference between our logits and those of `transformers` reading the folder; float32."""
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ours = Llama(shape, masked_attention)
    state = {name: value for name, value in theirs.state_dict().items() if name != "lm_head.weight"}
    ours.load_state_dict(state, strict=True)
    ids = torch.tensor([tokens])
    causal = torch.ones(len(tokens), len(tokens), dtype=torch.bool).tril()[None, None]
    with torch.no_grad():
        return float((theirs(ids).logits - ours(ids, causal)).abs().max())


def speak(
    folder: Path, chats: Iterable[str] = CHATS, completions: Iterable[str] = COMPLETIONS
) -> list[dict[str, str]]:
    """Greedy answers and completions, as the shipped model gives them."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    said: list[dict[str, str]] = []
    for question in chats:
        messages = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
        said.append({"chat": question, "answer": _continue(model, tokenizer, ids)})
    for beginning in completions:
        ids = tokenizer(beginning, return_tensors="pt").input_ids
        said.append({"completion": beginning, "answer": _continue(model, tokenizer, ids)})
    return said


def _continue(model: Any, tokenizer: Any, ids: Tensor) -> str:
    answer = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=160, do_sample=False)
    return str(tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True))
