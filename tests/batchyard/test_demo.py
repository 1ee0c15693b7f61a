"""The demo model and its draft, as they are shipped."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from batchyard.demo import DRAFT_DIR, HELD_OUT, MODEL_DIR
from batchyard.demo.tokenizer import encode

SLICE = 12
"""Held-out sources and documents measured here; the README has the figures for all of them."""
SLICE_PERPLEXITY = {MODEL_DIR: 105.0, DRAFT_DIR: 115.0}
"""A little over what the shipped weights reach; an untrained model has thousands."""


@pytest.fixture(scope="module", params=[MODEL_DIR, DRAFT_DIR], ids=["model", "draft"])
def folder(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MODEL_DIR)


@pytest.fixture(scope="module")
def held_out() -> list[dict[str, Any]]:
    return json.loads(HELD_OUT.read_text(encoding="utf-8"))


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def test_sizes():
    parameters = {
        folder: sum(p.numel() for p in load(folder).parameters()) for folder in (MODEL_DIR, DRAFT_DIR)
    }
    assert 5_000_000 <= parameters[MODEL_DIR] <= 8_000_000
    assert parameters[DRAFT_DIR] <= 1_200_000
    for folder in parameters:
        assert (folder / "model.safetensors").stat().st_size <= 16_000_000


def test_both_share_one_tokenizer():
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (MODEL_DIR / name).read_bytes() == (DRAFT_DIR / name).read_bytes()


@pytest.mark.parametrize(
    "text",
    [
        "def read_lines(path):\n    with open(path) as file:\n        return file.readlines()\n",
        "  two spaces,\ttab,\r\n\n\n   and a trailing one ",
        "🦙 👩‍👩‍👧 日本語 한국어 Ωμέγα e\u0301",
        "\x00\x01\x7f\ufffd\u2028\ufeff",
        "1234567 3.14 0xdeadbeef __init__ _x x_",
        bytes(range(256)).decode("latin-1"),
    ],
)
def test_tokenizer_returns_what_it_was_given(tokenizer: Any, text: str):
    ids = tokenizer.encode(text)
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids[1:]) == text


def test_ids_fit_the_vocabulary(tokenizer: Any, folder: Path):
    config = json.loads((folder / "config.json").read_text())
    assert len(tokenizer) == config["vocab_size"]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (
        config["bos_token_id"],
        config["eos_token_id"],
    )


def test_chat_template(tokenizer: Any):
    messages = [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": " What is json? "},
        {"role": "assistant", "content": "A module."},
        {"role": "user", "content": "Thanks"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|begin|><|system|>Answer briefly.<|end|><|user|>What is json?<|end|>"
        "<|assistant|>A module.<|end|><|user|>Thanks<|end|><|assistant|>"
    )
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert ids == tokenizer.encode(text, add_special_tokens=False)
    assert ids.count(tokenizer.bos_token_id) == 1


def test_chat_template_is_what_the_model_was_trained_on(tokenizer: Any):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    ids = tokenizer.apply_chat_template(messages)["input_ids"]
    assert ids == encode(tokenizer, {"messages": messages})[0]


def test_held_out_text_has_every_kind(held_out: list[dict[str, Any]]):
    assert {document["kind"] for document in held_out} == {"source", "docs", "chat"}
    assert HELD_OUT.stat().st_size <= 1_000_000


def test_held_out_perplexity(tokenizer: Any, folder: Path, held_out: list[dict[str, Any]]):
    model = load(folder)
    nats, count = 0.0, 0
    texts = [document for document in held_out if document["kind"] != "chat"]
    for document in texts[:: len(texts) // SLICE]:
        ids, said = (part[:512] for part in encode(tokenizer, document))
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, :-1]
        losses = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
        trained = torch.tensor(said[1:])
        nats, count = nats + float(losses[trained].sum()), count + int(trained.sum())
    assert math.exp(nats / count) < SLICE_PERPLEXITY[folder]


def test_answers_in_chat(tokenizer: Any):
    messages = [{"role": "user", "content": "What does os.path.join do?"}]
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = load(MODEL_DIR).generate(**prompt, max_new_tokens=120, do_sample=False)[
        0, prompt["input_ids"].shape[1] :
    ]
    text = tokenizer.decode(answer, skip_special_tokens=True)
    assert text.startswith("`os.path.join(path, *paths)`")
    assert "Join one or more path segments" in text
    assert answer[-1] == tokenizer.eos_token_id
